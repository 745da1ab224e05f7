"""The payload's way on the agent: shares to K, K to files in the secure directory, then the script."""

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from keylime.errors import CredentialError
from keylime.messages.agent import UKeyRequest, VKeyRequest
from keylime.payload.archive import PayloadRefused, looks_like_archive
from keylime.payload.encryption import decrypt_payload
from keylime.payload.extraction import extract_archive
from keylime.payload.keys import DerivedKey, ShareCollector, auth_tag, decrypt_share, parse_auth_tag
from keylime_agent.processes import run_program

log = logging.getLogger(__name__)

_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class PayloadOptions:
    """What the operator chose. `script` is "" for none; `measure_pcr`, `script_limit_s` are None for none."""

    key_file: str
    payload_file: str
    extract_zip: bool
    script: str
    measure_pcr: int | None
    is_allowed: bool  # not without mutual TLS, unless the operator insists
    script_limit_s: float | None


@dataclass(frozen=True, slots=True)
class Installed:
    """A payload in place: its files are in `directory`; `script` is to be run, if there is one."""

    directory: Path
    script: Path | None


class Bootstrap:
    """The shares that arrived and the K they made. Hands each new K with its payload to `deliver`, once."""

    def __init__(self, agent_id: str, key: RSAPrivateKey, deliver: Callable[[DerivedKey], None]) -> None:
        self._agent_id = agent_id
        self._key = key
        self._deliver = deliver
        self._shares = ShareCollector(agent_id)
        self._k: bytes | None = None
        self._seen: list[bytes] = []

    def add_u(self, request: UKeyRequest) -> None:
        """Take a share from the tenant. Raises CredentialError where it cannot be one."""
        tag = parse_auth_tag(request.auth_tag)
        self._derived(
            self._shares.add_u(decrypt_share(self._key, request.encrypted_key), tag, request.payload)
        )

    def add_v(self, request: VKeyRequest) -> None:
        """Take a share from the verifier. Raises CredentialError where it cannot be one."""
        self._derived(self._shares.add_v(decrypt_share(self._key, request.encrypted_key)))

    def answer(self, challenge: str) -> str | None:
        """The proof of having K: hex HMAC of `challenge`; None while there is no K."""
        return None if self._k is None else auth_tag(self._k, challenge)

    def _derived(self, derived: DerivedKey | None) -> None:
        if derived is None:
            return
        self._k = derived.k
        # The same shares and payload once more are a repeated delivery, not an administrator's new one: that
        # comes with a new K.
        mark = hashlib.sha256(derived.k + (derived.payload or "").encode()).digest()
        if mark in self._seen:
            log.warning("the bootstrap key and payload arrived again; the payload is not run twice")
            return
        self._seen = [*self._seen[-_REMEMBERED:], mark]
        log.info("bootstrap key derived from the shares of tenant and verifier")
        self._deliver(derived)


class PayloadWorker:
    """Installs payloads and runs their scripts, one after another."""

    def __init__(
        self,
        environment: Mapping[str, str],
        secure_dir: Path,
        options: PayloadOptions,
        measure: Callable[[int, bytes], Awaitable[None]],
        on_installed: Callable[[], None],
    ) -> None:
        """`on_installed` is called when the files of a payload are in place, before its script runs."""
        self._environment = environment
        self._directory = secure_dir / "unzipped"
        self._options = options
        self._measure = measure
        self._on_installed = on_installed
        self._queue: asyncio.Queue[DerivedKey] = asyncio.Queue()

    def deliver(self, derived: DerivedKey) -> None:
        """Queue a payload; K alone has nothing to install."""
        if derived.payload is None:
            log.info("there is no payload with the bootstrap key")
        elif not self._options.is_allowed:
            log.warning("payload ignored: mutual TLS is off and enable_insecure_payload is not set")
        else:
            self._queue.put_nowait(derived)

    async def run(self) -> None:
        """Work for ever."""
        while True:
            derived = await self._queue.get()
            try:
                await self._process(derived)
            except (CredentialError, PayloadRefused) as error:
                log.error("payload refused: %s", error)
            except Exception:
                log.exception("payload could not be processed")
            finally:
                self._queue.task_done()

    async def settled(self) -> None:
        """Wait until everything delivered so far has been processed."""
        await self._queue.join()

    async def _process(self, derived: DerivedKey) -> None:
        installed = await asyncio.to_thread(install_payload, derived, self._directory, self._options)
        log.info("payload installed in %s", installed.directory)
        self._on_installed()
        if self._options.measure_pcr is not None:
            await self._measure(self._options.measure_pcr, derived.k + (derived.payload or "").encode())
        if installed.script is None:
            return
        log.info("running payload script %s", installed.script.name)
        outcome = await run_program(
            (str(installed.script),),
            directory=installed.directory,
            environment=self._environment,
            limit_s=self._options.script_limit_s,
            on_line=lambda stream, line: log.info("Payload script %s: %s", stream, line),
        )
        report = log.info if outcome.is_success else log.warning
        report("payload script %s: %s", installed.script.name, outcome)


def install_payload(derived: DerivedKey, directory: Path, options: PayloadOptions) -> Installed:
    """The payload decrypted and written to `directory`, which holds nothing else afterwards.

    Raises CredentialError, and nothing has changed; or PayloadRefused, and nothing of the payload is left.
    """
    data = decrypt_payload(derived.k, derived.payload or "")
    try:
        _renew(directory)
        _write(directory / options.key_file, derived.k)
        is_archive = options.extract_zip and looks_like_archive(data)
        names = extract_archive(data, directory) if is_archive else ()
        _write_copy(directory / options.payload_file, data, is_needed=not is_archive)
        script = directory / options.script if options.script and options.script in names else None
        if script is not None:
            script.chmod(0o700)
    except PayloadRefused:
        _renew(directory)
        raise
    except OSError as error:
        _renew(directory)
        raise PayloadRefused(f"it cannot be written to {directory}: {error.strerror}") from error
    return Installed(directory, script)


def _renew(directory: Path) -> None:
    if directory.is_symlink():
        directory.unlink()
    elif directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(mode=0o700)


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)


def _write_copy(path: Path, data: bytes, *, is_needed: bool) -> None:
    """The decrypted payload as one file, which beside the files of an archive is a convenience only."""
    try:
        _write(path, data)
    except OSError as error:
        if is_needed:
            raise
        log.info("no copy of the archive in %s: %s", path.name, error.strerror)
        if not isinstance(error, FileExistsError):
            path.unlink(missing_ok=True)
