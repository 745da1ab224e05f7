"""The real registrar in this process, on loopback ports, with certificates of a test authority."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keylime_registrar.assembly import prepare, running
from keylime_registrar.config import load_config
from tests.fakes.client_session import client_session
from tests.fakes.software_identity import SoftwareIdentity
from tests.fakes.tls_material import SERVER_AUTH, Authority, client_context

_authority: list[Authority] = []


def registrar_authority() -> Authority:
    """The authority of all registrars in a test run."""
    if not _authority:
        _authority.append(Authority("Keylime test CA"))
    return _authority[0]


@dataclass(frozen=True)
class Answer:
    """What a client sees: the status, and the body as JSON (None when it is empty)."""

    code: int
    body: Any

    @property
    def status(self) -> str:
        """The envelope's text."""
        return str(self.body["status"])

    @property
    def results(self) -> Any:
        """The envelope's results."""
        return self.body["results"]


@dataclass(frozen=True)
class RunningRegistrar:
    """A registrar that serves; `plain` and `admin` call it as agents and administrators do."""

    port: int
    tls_port: int
    directory: Path
    session: aiohttp.ClientSession
    administrators: ssl.SSLContext

    async def plain(self, method: str, path: str, body: object = None, **kwargs: Any) -> Answer:
        """A call over plain HTTP."""
        return await self._call(f"http://127.0.0.1:{self.port}{path}", method, body, **kwargs)

    async def admin(self, method: str, path: str, body: object = None) -> Answer:
        """A call over TLS with an administrator's certificate."""
        return await self.secure(method, path, self.administrators, body)

    async def secure(
        self, method: str, path: str, context: ssl.SSLContext, body: object = None, **kwargs: Any
    ) -> Answer:
        """A call over TLS with a context of the test's choice. Raises aiohttp.ClientError."""
        return await self._call(
            f"https://127.0.0.1:{self.tls_port}{path}", method, body, ssl=context, **kwargs
        )

    async def enrol(self, agent_id: str, identity: SoftwareIdentity, **fields: object) -> None:
        """Registers and activates."""
        registered = await self.plain("POST", f"/v2.5/agents/{agent_id}", identity.registration(**fields))
        assert registered.code == 200, registered
        tag = identity.answer(registered.results["blob"], agent_id)
        activated = await self.plain("PUT", f"/v2.5/agents/{agent_id}", {"auth_tag": tag})
        assert activated.code == 200, activated

    async def _call(self, url: str, method: str, body: object, **kwargs: Any) -> Answer:
        payload = {"data": body} if isinstance(body, bytes) else {} if body is None else {"json": body}
        async with self.session.request(method, url, **payload, **kwargs) as response:
            text = await response.read()
            return Answer(response.status, await response.json() if text else None)


def install_certificates(work_dir: Path) -> None:
    """What a verifier's first start leaves for the registrar."""
    authority = registrar_authority()
    directory = work_dir / "cv_ca"
    directory.mkdir(parents=True, exist_ok=True)
    authority.write(directory / "cacert.crt")
    server = authority.issue("server", usages=(SERVER_AUTH,))
    (directory / "server-cert.crt").write_text(server.pem)
    key = directory / "server-private.pem"
    key.touch(mode=0o600)
    key.write_bytes(server.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@asynccontextmanager
async def running_registrar(
    work_dir: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[RunningRegistrar]:
    """A registrar with its files in `work_dir`; it goes on from what is there already."""
    install_certificates(work_dir)
    config = load_config(
        {
            "KEYLIME_DIR": str(work_dir),
            "KEYLIME_REGISTRAR_PORT": "0",
            "KEYLIME_REGISTRAR_TLS_PORT": "0",
            "KEYLIME_REGISTRAR_MAX_WORKERS": "1",
            **(environ or {}),
        }
    )
    authority = registrar_authority()
    administrators = client_context(authority, authority.issue("operator"))
    assert await prepare(config)
    async with running(config) as registrar, client_session() as session:
        yield RunningRegistrar(*registrar.ports, work_dir, session, administrators)
