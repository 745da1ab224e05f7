"""The real verifier in this process, on a loopback port, with certificates of a test authority."""

import asyncio
import base64
import functools
import io
import sqlite3
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keylime_verifier.assembly.tables import prepare_database
from keylime_verifier.assembly.verifier import Verifier, running
from keylime_verifier.config import VerifierConfig, load_config
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.client_session import client_session
from tests.fakes.eventual import eventually
from tests.fakes.tls_material import SERVER_AUTH, Authority, Issued, client_context

V_SHARE = bytes(range(32))
FAST = {
    "KEYLIME_VERIFIER_PORT": "0",
    "KEYLIME_VERIFIER_NUM_WORKERS": "1",
    "KEYLIME_VERIFIER_TLS_DIR": "default",
    "KEYLIME_VERIFIER_QUOTE_INTERVAL": "0.03",
    "KEYLIME_VERIFIER_RETRY_INTERVAL": "0.03",
    "KEYLIME_VERIFIER_MAX_RETRIES": "3",
    "KEYLIME_VERIFIER_EXPONENTIAL_BACKOFF": "False",
    "KEYLIME_VERIFIER_REQUEST_TIMEOUT": "5",
}


@functools.cache
def verifier_authority() -> Authority:
    """The authority of all verifiers in a test run."""
    return Authority("Keylime test CA")


@functools.cache
def revocation_key() -> rsa.RSAPrivateKey:
    """The key that revocations are signed with."""
    return rsa.generate_private_key(65537, 2048)


def revocation_key_pem() -> str:
    """The same as it is given to the verifier."""
    return revocation_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


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


def enrolment(agent: AttestingAgent, **changes: object) -> dict[str, object]:
    """The body that adds `agent` with a policy for its files; a change to `...` leaves the field out."""
    body: dict[str, object] = {
        "v": base64.b64encode(V_SHARE).decode(),
        "cloudagent_ip": agent.ip,
        "cloudagent_port": agent.port,
        "tpm_policy": '{"mask": "0x0"}',
        "metadata": "{}",
        "runtime_policy": base64.b64encode(policy_of(agent.files).encode()).decode(),
        "runtime_policy_name": "",
        "mb_policy": None,
        "mb_policy_name": "",
        "ima_sign_verification_keys": "",
        "revocation_key": revocation_key_pem(),
        "accept_tpm_hash_algs": ["sha256"],
        "accept_tpm_encryption_algs": ["ecc", "rsa"],
        "accept_tpm_signing_algs": ["ecdsa", "rsassa"],
        "ak_tpm": base64.b64encode(agent.machine.ak.tpm2b_public).decode(),
        "mtls_cert": agent.identity.pem,
        "supported_version": agent.versions[-1],
        **changes,
    }
    return {name: value for name, value in body.items() if value is not ...}


@dataclass(frozen=True)
class RunningVerifier:
    """A verifier that serves; `admin` calls it as an administrator does."""

    port: int
    config: VerifierConfig
    session: aiohttp.ClientSession
    administrators: ssl.SSLContext
    verifier: Verifier | None = None  # None: it is a process of its own

    async def admin(self, method: str, path: str, body: object = None) -> Answer:
        """A call with an administrator's certificate."""
        return await self.call(method, path, self.administrators, body)

    async def call(
        self, method: str, path: str, context: ssl.SSLContext, body: object = None, **kwargs: Any
    ) -> Answer:
        """A call with a context of the test's choice. Raises aiohttp.ClientError."""
        payload = (
            {"data": body} if isinstance(body, bytes | io.BytesIO) else {} if body is None else {"json": body}
        )
        url = f"https://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, ssl=context, **payload, **kwargs) as response:
            text = await response.read()
            return Answer(response.status, await response.json() if text else None)

    async def add(self, agent: AttestingAgent, **changes: object) -> None:
        """Adds `agent`, see `enrolment`."""
        answer = await self.admin("POST", f"/v2.5/agents/{agent.agent_id}", enrolment(agent, **changes))
        assert answer.code == 200, answer

    async def status(self, agent: AttestingAgent) -> dict[str, Any]:
        """What the verifier shows of `agent`."""
        answer = await self.admin("GET", f"/v2.5/agents/{agent.agent_id}")
        assert answer.code == 200, answer
        results: dict[str, Any] = answer.results
        return results

    async def until(
        self, agent: AttestingAgent, condition: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """The first status of `agent` that fulfils `condition`."""
        last: dict[str, Any] = {}

        async def look() -> dict[str, Any]:
            last.clear()
            last.update(await self.status(agent))
            return last if condition(last) else {}

        try:
            return dict(await eventually(look))
        except TimeoutError as error:
            raise TimeoutError(f"the last status was {last}") from error

    async def until_state(self, agent: AttestingAgent, state: int) -> dict[str, Any]:
        """The first status of `agent` in this operational state, which may still have to be written."""
        return await self.until(agent, lambda status: status["operational_state"] == state)

    async def until_failed(self, agent: AttestingAgent) -> dict[str, Any]:
        """The first status of `agent` after a rejection that is written."""
        return await self.until(agent, lambda status: status["attestation_status"] == "FAIL")

    async def until_passing(self, agent: AttestingAgent, rounds: int = 1) -> dict[str, Any]:
        """The first status of `agent` that is a pass after `rounds` successful rounds more than now."""
        now = (await self.status(agent))["attestation_count"]
        return await self.until(
            agent,
            lambda status: (
                status["attestation_status"] == "PASS" and status["attestation_count"] >= now + rounds
            ),
        )

    async def change(self, query: str, *values: object) -> None:
        """Changes the database beside the verifier, which may be in the middle of a transaction."""
        await asyncio.to_thread(query_database, self.config.work_dir, query, *values)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the verifier's database, read beside it."""
        return query_database(self.config.work_dir, query, *values)


def database_of(work_dir: Path) -> Path:
    """The verifier's SQLite file."""
    return work_dir / "cv_data.sqlite"


def query_database(work_dir: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Reads or changes the verifier's database from outside."""
    # A transaction that begins as a reader could not become a writer after another one wrote.
    reads = query.startswith("SELECT")
    with closing(sqlite3.connect(database_of(work_dir), timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
        rows = connection.execute(query, values).fetchall()
        connection.execute("COMMIT")
        return rows


NOT_TOLD = (
    "SELECT (SELECT count(*) FROM deliveries WHERE state <> 'delivered') + (SELECT count(*) FROM recipients "
    "WHERE through < (SELECT coalesce(max(number), 0) FROM revocations))"
)
"""How many deliveries are pending or given up, and how many agents have a backlog."""

TOLD = "SELECT agent_id FROM recipients WHERE told_at IS NOT NULL ORDER BY agent_id"
"""The agents that have taken a revocation. When they have, it has no row of `deliveries`."""


def install_certificates(work_dir: Path) -> None:
    """What makes `tls_dir = default` work: CA, server and client certificates."""
    directory = work_dir / "cv_ca"
    directory.mkdir(parents=True, exist_ok=True)
    verifier_authority().write(directory / "cacert.crt")
    for name, issued in _service_certificates().items():
        (directory / f"{name}-cert.crt").write_text(issued.pem)
        key = directory / f"{name}-private.pem"
        key.touch(mode=0o600)
        key.write_bytes(issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@functools.cache
def _service_certificates() -> dict[str, Issued]:
    authority = verifier_authority()
    return {"server": authority.issue("server", usages=(SERVER_AUTH,)), "client": authority.issue("client")}


def verifier_config(work_dir: Path, environ: Mapping[str, str] | None = None) -> VerifierConfig:
    """A configuration for tests: short intervals, any port."""
    return load_config({"KEYLIME_DIR": str(work_dir), **FAST, **(environ or {})})


@asynccontextmanager
async def running_verifier(
    work_dir: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[RunningVerifier]:
    """A verifier with its files in `work_dir`; it goes on from what is there already."""
    install_certificates(work_dir)
    config = verifier_config(work_dir, environ)
    administrators = client_context(verifier_authority(), verifier_authority().issue("operator"))
    await prepare_database(config)
    async with running(config) as verifier, client_session() as session:
        yield RunningVerifier(verifier.port, config, session, administrators, verifier)
