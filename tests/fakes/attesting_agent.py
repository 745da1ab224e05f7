"""An agent in this process, on loopback TLS, that attests genuinely, with an AK in software.

Its PCR 10 follows from its IMA list, PCR 16 from its payload key, its clock advances, its counters count
boots. A test makes it misbehave through `answer_quote`, `gate` and the state it may change at will.
"""

import asyncio
import functools
import hashlib
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from keylime.hashes import HashAlgorithm
from keylime.http.server import Request, Response, Role, Route, Server
from keylime.ima.measurement_list import ima_ng_line
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.ima.templates import FileDigest
from keylime.messages.agent import VKeyRequest
from keylime.messages.revocation import SignedRevocation
from keylime.payload.keys import decrypt_share
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import PcrValues
from tests.fakes.software_ak import SoftwareAk
from tests.fakes.tls_material import Authority, Issued, self_signed

BANK = HashAlgorithm.SHA256


@dataclass(frozen=True)
class Raw(Response):
    """An answer whose body is these bytes, JSON or not."""

    content: bytes = b""

    def encode(self) -> bytes:
        return self.content


@functools.cache
def payload_key(number: int = 0) -> rsa.RSAPrivateKey:
    """RSA keys take their time: all agents of a test run share a few."""
    return rsa.generate_private_key(65537, 2048)


def public_pem(key: rsa.RSAPrivateKey) -> str:
    """The public half as agents send it."""
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form).decode()


@functools.cache
def attestation_key(number: int = 0) -> SoftwareAk:
    """An AK; agents with the same number have the same."""
    return SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)


def file_digest(content: bytes) -> bytes:
    """What IMA measures of a file."""
    return hashlib.sha256(content).digest()


def policy_of(files: dict[str, bytes]) -> str:
    """A runtime policy that allows exactly these files."""
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    document["digests"] = {name: [file_digest(content).hex()] for name, content in files.items()}
    return json.dumps(document)


@dataclass
class Machine:
    """The kernel and TPM behind an agent."""

    ak: SoftwareAk
    lines: list[bytes] = field(default_factory=list)
    pcr_10: bytes = bytes(BANK.size)
    clock: int = 1000
    reset_count: int = 1
    restart_count: int = 0
    boottime: int = 1_700_000_000

    def measure(self, name: str, content: bytes) -> None:
        """The kernel measures a file."""
        digest = file_digest(content)
        self.lines.append(ima_ng_line(FileDigest("sha256", digest), name))
        shown = b"sha256:\0" + digest
        path = name.encode() + b"\0"
        data = len(shown).to_bytes(4, "little") + shown + len(path).to_bytes(4, "little") + path
        self.pcr_10 = BANK.digest(self.pcr_10 + BANK.digest(data))

    def boot(self) -> None:
        """A restart of the machine: an empty log, a reset TPM."""
        self.lines.clear()
        self.pcr_10 = bytes(BANK.size)
        self.reset_count += 1
        self.boottime += 3600
        self.clock += 60_000

    def quote(self, nonce: str, mask: int, pubkey: str) -> str:
        """A genuine quote of the PCRs in `mask` and of PCR 16."""
        values = {
            index: b"\xff" * BANK.size if 17 <= index <= 22 else bytes(BANK.size)
            for index in range(24)
            if mask & (1 << index)
        }
        if 10 in values:
            values[10] = self.pcr_10
        values[16] = BANK.digest(bytes(BANK.size) + BANK.digest(pubkey.encode()))
        return self.quote_of(nonce.encode(), PcrValues(BANK, dict(sorted(values.items()))))

    def quote_of(self, qualifying: bytes, values: PcrValues) -> str:
        """A genuine quote with these values."""
        self.clock += 7
        return self.ak.quote(
            qualifying,
            values,
            clock=self.clock,
            reset_count=self.reset_count,
            restart_count=self.restart_count,
        )


@dataclass
class Question:
    """One request for a quote, as it arrived."""

    version: str
    nonce: str
    mask: int
    partial: str
    entry: int
    asker: str  # IP address
    at: float = field(default_factory=time.monotonic)


class AttestingAgent:
    """`questions`, `shares` and `revocations` are what arrived, in order; `paths` everything that did."""

    def __init__(
        self,
        agent_id: str,
        authority: Authority,
        *,
        files: dict[str, bytes] | None = None,
        versions: tuple[str, ...] = ("2.1", "2.5"),
        ak: SoftwareAk | None = None,
        ip: str = "127.0.0.1",
    ) -> None:
        self.agent_id = agent_id
        self.ip = ip
        self.machine = Machine(ak or attestation_key())
        self.files = {"boot_aggregate": b"all zero"} if files is None else files
        self.payload_key = payload_key()
        self.versions = versions
        self.identity = self_signed(agent_id)
        self.questions: list[Question] = []
        self.shares: list[bytes] = []
        self.revocations: list[SignedRevocation] = []
        self.paths: list[str] = []
        self.callers: list[str | None] = []  # common names of those who asked for quotes
        self.port = 0
        self.answer_quote: Callable[[dict[str, Any]], Response] | None = None
        self.answer_version: Response | None = None
        self.answer_vkey: Response | None = None
        self.answer_revocation: Response | None = None
        self.gate: asyncio.Event | None = None  # quotes wait for it
        self.held = 0  # quotes that wait or have waited at the gate
        self._authority = authority
        self._server: Server | None = None
        self.run_files()

    def run_files(self) -> None:
        """The machine measures all of `files`, as at boot."""
        for name, content in self.files.items():
            self.machine.measure(name, content)

    def reboot(self) -> None:
        """The machine restarts and measures its files anew."""
        self.machine.boot()
        self.run_files()

    def tamper(self, name: str = "/usr/bin/backdoor") -> None:
        """Something runs that no policy allows."""
        self.machine.measure(name, b"evil")

    @property
    def pubkey(self) -> str:
        """The payload key as it is sent."""
        return public_pem(self.payload_key)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.stop()

    def start(self) -> None:
        """Listens; again on the same port after `stop`."""
        routes = [
            Route("GET", "/version", Role.ANONYMOUS, self._show_version, versioned=False),
            Route("GET", "/quotes/integrity", Role.ANONYMOUS, self._quote),
            Route("POST", "/keys/vkey", Role.ANONYMOUS, self._take_v),
            Route("POST", "/notifications/revocation", Role.ANONYMOUS, self._take_revocation),
        ]
        self._server = Server(routes, versions=self.versions, unrouted=self._unrouted)
        self.port = self._server.listen(self.ip, self.port, self._context())

    def show(self, identity: Issued) -> None:
        """Shows another certificate from now on, without a pause."""
        self.identity = identity
        if self._server is not None:
            self._server.renew(tls=self._context(), max_body=self._server.limits.max_body)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.identity.load_into(context)
        self._authority.trusted_by(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def stop(self) -> None:
        """Falls silent: the port is closed."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)

    def _unrouted(self, method: str, path: str) -> Response:
        self.paths.append(f"{method} {path}")
        if path.startswith("/v"):
            return Response(400, status="API version not supported")
        return Response(404, status="URI not supported")

    async def _show_version(self, _request: Request) -> Response:
        self.paths.append("GET /version")
        if self.answer_version is not None:
            return self.answer_version
        shown = {"supported_version": self.versions[-1], "supported_versions": list(self.versions)}
        return Response(results=shown)

    async def _quote(self, request: Request) -> Response:
        query = request.query
        question = Question(
            version=request.version or "",
            nonce=query["nonce"],
            mask=int(query["mask"], 16),
            partial=query["partial"],
            entry=int(query["ima_ml_entry"]),
            asker=request.caller.address,
        )
        self.paths.append(f"GET /v{request.version}/quotes/integrity")
        self.questions.append(question)
        self.callers.append(request.caller.name)
        if self.gate is not None:
            self.held += 1
            await self.gate.wait()
        results = self._evidence(question)
        return Response(results=results) if self.answer_quote is None else self.answer_quote(results)

    def _evidence(self, question: Question) -> dict[str, Any]:
        machine = self.machine
        results: dict[str, Any] = {
            "quote": machine.quote(question.nonce, question.mask, self.pubkey),
            "hash_alg": BANK.label,
            "enc_alg": "ecc256",
            "sign_alg": "ecdsa",
            "boottime": machine.boottime,
        }
        if question.partial == "0":
            results["pubkey"] = self.pubkey
        if question.mask & (1 << 10):
            entry = question.entry if question.entry <= len(machine.lines) else 0
            results["ima_measurement_list"] = b"".join(
                line + b"\n" for line in machine.lines[entry:]
            ).decode()
            results["ima_measurement_list_entry"] = entry
        return results

    async def _take_v(self, request: Request) -> Response:
        self.paths.append(f"POST /v{request.version}/keys/vkey")
        if self.answer_vkey is not None:
            return self.answer_vkey
        self.shares.append(decrypt_share(self.payload_key, request.json(VKeyRequest).encrypted_key))
        return Response()

    async def _take_revocation(self, request: Request) -> Response:
        self.paths.append(f"POST /v{request.version}/notifications/revocation")
        if self.answer_revocation is not None:
            return self.answer_revocation
        self.revocations.append(request.json(SignedRevocation))
        return Response()
