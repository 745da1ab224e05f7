"""Reads the policy files that flags name, and downloads the ones that are given as URLs."""

import asyncio
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import yarl

from keylime.errors import ConfigError, KeylimeError, PeerUnreachable
from keylime.http.server_check import ServerCheck
from keylime.pki.server_names import NameCheck
from keylime.safe_paths import require_safe_file
from keylime_tenant.arguments import Arguments
from keylime_tenant.config import TenantConfig
from keylime_tenant.payload_sources import read_file
from keylime_tenant.policies import PolicyDocuments

_MAX_DOWNLOAD = 100 << 20  # bytes: what verifiers take
_CONFIGURED = "default"


async def read_documents(
    arguments: Arguments, config: TenantConfig, tls: ssl.SSLContext, names: NameCheck = NameCheck.WARN
) -> PolicyDocuments:
    """Everything that the policy flags refer to. Raises ConfigError naming the flag, PeerUnreachable."""
    downloads = Downloads(tls, config.request_timeout_s, names)
    allowlist = _optional_file("--allowlist", arguments.allowlist)
    if arguments.allowlist_url:
        # Nothing else protects an allowlist on its way.
        allowlist = await downloads.fetch("--allowlist-url", arguments.allowlist_url, plain=False)
    policy = _optional_file("--runtime-policy", arguments.runtime_policy)
    if arguments.runtime_policy_url:
        policy = await downloads.fetch("--runtime-policy-url", arguments.runtime_policy_url, plain=True)
    return PolicyDocuments(
        runtime_policy=policy,
        runtime_policy_key=_optional_file("--runtime-policy-sig-key", arguments.runtime_policy_sig_key),
        allowlist=allowlist,
        excludes=_optional_file("--exclude", arguments.exclude),
        reference_state=_reference_state(arguments.mb_policy, config.mb_refstate),
        ima_keys=await _ima_keys(arguments, downloads),
    )


class Downloads:
    """Files from web servers: no redirects, bounded time and size, certificates of the configured CA only."""

    def __init__(self, tls: ssl.SSLContext, timeout_s: float, names: NameCheck = NameCheck.WARN) -> None:
        self._tls = tls
        self._names = names
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def fetch(self, flag: str, url: str, *, plain: bool) -> bytes:
        """The content at `url`; `plain` allows http. Raises ConfigError, PeerUnreachable."""
        scheme = urlsplit(url).scheme
        if scheme not in (("http", "https") if plain else ("https",)):
            raise ConfigError(f"{flag}: expected {'http or ' if plain else ''}https, not {url}")
        connector = aiohttp.TCPConnector(ssl=ServerCheck(yarl.URL(url).raw_host or "", self._names))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, trust_env=False, timeout=self._timeout) as session,
                session.get(url, ssl=self._tls, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise PeerUnreachable(f"{flag}: {url} answered {response.status}")
                return await self._read(flag, url, response)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            hint = "its certificate must come from a CA in [tenant] trusted_server_ca"
            raise PeerUnreachable(f"{flag}: {url} cannot be downloaded: {error} ({hint})") from error

    async def _read(self, flag: str, url: str, response: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > _MAX_DOWNLOAD:
                raise ConfigError(f"{flag}: {url} is larger than {_MAX_DOWNLOAD} bytes")
        return bytes(content)


def _optional_file(flag: str, path: str | None) -> bytes | None:
    return None if path is None else read_file(flag, path)


def _reference_state(flag: str | None, configured: str) -> bytes | None:
    if flag != _CONFIGURED:
        return _optional_file("--mb-policy", flag)
    if not configured:
        raise ConfigError("--mb-policy default: [tenant] mb_refstate names no file")
    try:
        require_safe_file(Path(configured))
    except ConfigError as error:
        raise ConfigError(f"[tenant] mb_refstate: {error}") from error
    return read_file("[tenant] mb_refstate", configured)


async def _ima_keys(arguments: Arguments, downloads: Downloads) -> tuple[bytes, ...]:
    flag = "--signature-verification-key"
    keys = [read_file(flag, path) for path in arguments.verification_keys]
    signatures = [read_file(f"{flag}-sig", path) for path in arguments.verification_key_sigs]
    await _check_signatures(flag, keys, signatures, arguments.verification_key_sig_keys)
    signed = bool(arguments.verification_key_sig_urls)
    fetched = [
        await downloads.fetch(f"{flag}-url", url, plain=signed) for url in arguments.verification_key_urls
    ]
    signatures = [
        await downloads.fetch(f"{flag}-sig-url", url, plain=True)
        for url in arguments.verification_key_sig_urls
    ]
    await _check_signatures(f"{flag}-url", fetched, signatures, arguments.verification_key_sig_url_keys)
    return (*keys, *fetched)


async def _check_signatures(
    flag: str, contents: Sequence[bytes], signatures: Sequence[bytes], signers: Sequence[str]
) -> None:
    """When one of several keys has a signature, all must: which belongs to which is told by their order."""
    if not signatures and not signers:
        return
    if not len(contents) == len(signatures) == len(signers):
        raise ConfigError(
            f"{flag}: {len(contents)} keys need as many signatures and signers, "
            f"not {len(signatures)} and {len(signers)}"
        )
    for content, signature, signer in zip(contents, signatures, signers, strict=True):
        if not await is_openpgp_signature(content, signature, read_file(flag, signer)):
            raise ConfigError(f"{flag}: the OpenPGP signature was not made by the key in {signer}")


async def is_openpgp_signature(content: bytes, signature: bytes, signer: bytes) -> bool:
    """Whether `signature` is one of `content` by the OpenPGP key `signer`; no other key counts."""
    with tempfile.TemporaryDirectory(prefix="keylime-gpg-") as home:
        directory = Path(home)
        for name, data in (("content", content), ("signature", signature), ("signer", signer)):
            (directory / name).write_bytes(data)
        return await _gpg(directory, "--import", "signer") and await _gpg(
            directory, "--verify", "signature", "content"
        )


async def _gpg(directory: Path, *arguments: str) -> bool:
    command = ["gpg", "--homedir", str(directory), "--batch", "--no-tty", "--no-autostart", *arguments]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise KeylimeError(
            "OpenPGP signatures are checked by the program gpg, which is not installed"
        ) from error
    return await process.wait() == 0
