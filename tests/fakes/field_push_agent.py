"""An agent that attests by itself as those in the field do: what they send, and how strictly they read.

Its TPM is in software. It sends nothing again by itself: a test says what comes next. Every answer that an
agent in the field could not go on with, or would take for something else, raises `UnusableAnswer`.
"""

import base64
import hashlib
import random
import ssl
import string
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import urljoin

import aiohttp
import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

from keylime.hashes import HashAlgorithm
from keylime.tpm.pcr import PcrValues
from tests.fakes.attesting_agent import BANK, Machine
from tests.fakes.client_session import client_session
from tests.fakes.field_answers import (
    LogParameters,
    QuoteParameters,
    UnusableAnswer,
    read_challenge,
    read_pace,
    read_requests,
    read_token,
)
from tests.fakes.software_ak import SoftwareAk
from tests.fakes.software_identity import certify_attest, name_of

JSON_API = "application/vnd.api+json"
TIMEOUT_S = 5.0
_SUBJECTS = list(range(24))
_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class Answer:
    """What came."""

    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def details(self) -> str:
        """The details of its errors."""
        try:
            errors = msgspec.json.decode(self.body)["errors"]
        except (msgspec.DecodeError, KeyError, TypeError):
            return self.body.decode(errors="replace")
        return "; ".join(str(error.get("detail")) for error in errors)


class Refused(Exception):
    """An answer that is not the one that was hoped for."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.code} {answer.details}")
        self.answer = answer


@dataclass(frozen=True)
class Negotiation:
    """Where evidence goes, and what it is of."""

    path: str
    asked: list[tuple[str, QuoteParameters | LogParameters]]


@dataclass
class Logs:
    """The boot log that a machine has, beside its IMA list."""

    boot: bytes | None = None
    boot_events: int = 37


@dataclass
class FieldPushAgent:
    """One agent. `machine` is its kernel and TPM, `token` what it was given last."""

    agent_id: str
    url: str
    tls: ssl.SSLContext = field(repr=False)
    machine: Machine
    logs: Logs = field(default_factory=Logs)
    token: str | None = None
    limit_s: float = TIMEOUT_S
    _session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._opened = client_session(ssl=self.tls)
        self._session = await self._opened.__aenter__()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self._session is not None:
            await self._opened.__aexit__(None, None, None)

    async def hang_up(self) -> None:
        """The next request goes over a new connection."""
        await self.__aexit__()
        await self.__aenter__()

    @property
    def ak(self) -> SoftwareAk:
        """Its attestation key."""
        return self.machine.ak

    async def attest(self) -> int:
        """One round, with a proof where there is no token or it is over; the seconds to the next one."""
        if self.token is None:
            await self.log_in()
        try:
            negotiation = await self.negotiate()
        except Refused as refused:
            if refused.answer.code != 401:
                raise
            await self.log_in()
            negotiation = await self.negotiate()
        return await self.deliver(negotiation)

    async def open_session(self) -> tuple[str, bytes]:
        """The session's id, and its challenge. Raises Refused."""
        methods = [{"authentication_class": "pop", "authentication_type": "tpm_pop"}]
        attributes = {"agent_id": self.agent_id, "authentication_supported": methods}
        answer = await self._call(
            "POST", "/v3.0/sessions", {"data": {"type": "session", "attributes": attributes}}
        )
        if not 200 <= answer.code < 300:
            raise Refused(answer)
        return read_challenge(answer.body, self.agent_id)

    async def prove(self, session_id: str, challenge: bytes, **changes: bytes) -> None:
        """Sends the proof; `changes` may name another message or signature. Raises Refused."""
        message = changes.get("message", certify_attest(name_of(self.ak.tpm2b_public), challenge))
        data = {"message": _b64(message), "signature": _b64(changes.get("signature", self.ak.sign(message)))}
        proof = {"authentication_class": "pop", "authentication_type": "tpm_pop", "data": data}
        attributes = {"agent_id": self.agent_id, "authentication_provided": [proof]}
        document = {"data": {"type": "session", "id": session_id, "attributes": attributes}}
        answer = await self._call("PATCH", f"/v3.0/sessions/{session_id}", document)
        if not 200 <= answer.code < 300:
            raise Refused(answer)
        token = read_token(answer.body, self.agent_id, session_id)
        if token is None:
            raise Refused(answer)
        self.token = token

    async def log_in(self) -> None:
        """A session from its challenge to its token. Raises Refused."""
        self.token = None
        await self.prove(*await self.open_session())

    async def negotiate(self, **changes: object) -> Negotiation:
        """Says what there is; `changes` take the place of attributes. Raises Refused."""
        attributes = {"evidence_supported": self.supported(), "system_info": {"boot_time": self.boot_time}}
        document = {"data": {"type": "attestation", "attributes": {**attributes, **changes}}}
        answer = await self._call("POST", f"/v3.0/agents/{self.agent_id}/attestations", document)
        if answer.code != 201:
            raise Refused(answer)
        location = answer.headers.get("Location")
        if not location:
            raise UnusableAnswer("201 without a Location")
        return Negotiation(urljoin(self.url, location).removeprefix(self.url), read_requests(answer.body))

    async def deliver(self, negotiation: Negotiation, items: list[dict[str, Any]] | None = None) -> int:
        """Sends what is asked for, or `items`; the seconds to the next attestation. Raises Refused."""
        collected = self.collect(negotiation) if items is None else items
        kind = "attestation" if collected else "error"
        document = {"data": {"type": kind, "attributes": {"evidence_collected": collected}}}
        answer = await self._call("PATCH", negotiation.path, document)
        if answer.code != 202:
            raise Refused(answer)
        return read_pace(answer.body)

    @property
    def boot_time(self) -> str:
        """As the kernel has it: whole seconds."""
        return datetime.fromtimestamp(self.machine.boottime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def supported(self) -> list[dict[str, Any]]:
        """What it can show."""
        is_rsa = isinstance(self.ak.private_key, rsa.RSAPrivateKey)
        key = {
            "key_algorithm": "rsa" if is_rsa else "ecc",
            "key_class": "asymmetric",
            "key_size": self.ak.private_key.key_size,
            "server_identifier": "ak",
            "local_identifier": name_of(self.ak.tpm2b_public).hex(),
            "public": _b64(self.ak.tpm2b_public[2:]),
            "allowable_hash_algorithms": [self.ak.hash_algorithm.label],
            "allowable_signature_schemes": [self.ak.scheme.label],
        }
        quote = {
            "component_version": "2.0",
            "hash_algorithms": ["sha1", "sha256", "sha384", "sha512"],
            "signature_schemes": ["rsassa", "rsapss", "ecdsa"],
            "available_subjects": {"sha1": _SUBJECTS, "sha256": _SUBJECTS},
            "certification_keys": [key],
        }
        ima = {
            "entry_count": len(self.machine.lines),
            "supports_partial_access": True,
            "appendable": True,
            "formats": ["text/plain"],
        }
        items = [
            {"evidence_class": "certification", "evidence_type": "tpm_quote", "capabilities": quote},
            {"evidence_class": "log", "evidence_type": "ima_log", "capabilities": ima},
        ]
        if self.logs.boot is not None:
            boot = {
                "evidence_version": "2.1",
                "entry_count": self.logs.boot_events,
                "supports_partial_access": False,
                "appendable": False,
                "formats": ["application/octet-stream"],
            }
            items.insert(1, {"evidence_class": "log", "evidence_type": "uefi_log", "capabilities": boot})
        return items

    def collect(self, negotiation: Negotiation) -> list[dict[str, Any]]:
        """What is asked for, in that order."""
        return [self._item(kind, parameters) for kind, parameters in negotiation.asked]

    def _item(self, kind: str, parameters: QuoteParameters | LogParameters) -> dict[str, Any]:
        if isinstance(parameters, QuoteParameters):
            data: dict[str, Any] = self._quote(parameters)
            return {"evidence_class": "certification", "evidence_type": kind, "data": data}
        if kind == "uefi_log":
            data = {"entries": _b64(self.logs.boot or b"")}
        else:
            offset = parameters.starting_offset or 0
            lines = self.machine.lines[offset if offset <= len(self.machine.lines) else 0 :]
            text = b"".join(line + b"\n" for line in lines).decode()
            data = {"entry_count": len(lines), "entries": text}
        return {"evidence_class": "log", "evidence_type": kind, "data": data}

    def _quote(self, parameters: QuoteParameters) -> dict[str, str]:
        asked = (parameters.signature_scheme, parameters.hash_algorithm)
        if asked != (self.ak.scheme.label, self.ak.hash_algorithm.label):
            raise UnusableAnswer(f"a quote with {asked}, which this key does not make")
        indices = parameters.selected_subjects.get(BANK.label) or []
        challenge = base64.b64decode(parameters.challenge, validate=True)
        if len(challenge) != 16:
            raise UnusableAnswer("a challenge of another size")
        text = self.machine.quote_of(challenge, self.values(indices))
        message, signature, subject_data = text.removeprefix("r").split(":")
        return {"subject_data": subject_data, "message": message, "signature": signature}

    def values(self, indices: list[int]) -> PcrValues:
        """The PCRs that are asked for, and 16, which holds the hash of the AK here."""
        values = {index: b"\xff" * 32 if 17 <= index <= 22 else bytes(32) for index in indices}
        if 10 in values:
            values[10] = self.machine.pcr_10
        digest = hashlib.sha256(self.ak.tpm2b_public).digest()
        values[16] = BANK.digest(bytes(32) + digest)
        return PcrValues(HashAlgorithm.SHA256, dict(sorted(values.items())))

    async def _call(self, method: str, path: str, document: object) -> Answer:
        if self._session is None:
            raise AssertionError("not opened")
        is_session = path.startswith("/v3.0/sessions")
        headers = {"Content-Type": "application/json" if is_session else JSON_API}
        if not is_session:
            headers["X-Request-ID"] = "".join(random.choices(_ALPHABET, k=6))  # noqa: S311 - names a request
            headers["Authorization"] = f"Bearer {self.token}"
        async with self._session.request(
            method,
            self.url + path,
            data=msgspec.json.encode(document),
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=self.limit_s),
        ) as response:
            answer = Answer(response.status, dict(response.headers), await response.read())
        if answer.code < 300 and "Retry-After" in answer.headers:
            raise UnusableAnswer(f"Retry-After with {answer.code} would have the request sent again")
        if not is_session and answer.headers.get("X-Request-ID") != headers["X-Request-ID"]:
            raise UnusableAnswer("the request's id is not echoed")
        return answer


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
