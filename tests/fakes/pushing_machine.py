"""A machine that attests by itself, with an AK in software: genuine unless a test makes it otherwise.

It speaks API 3.0 by hand, so that what the verifier answers is looked at as it is on the wire.
"""

import asyncio
import base64
import hashlib
import json
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from keylime.hashes import HashAlgorithm
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import PcrValues
from tests.fakes.attesting_agent import BANK, Machine, attestation_key, policy_of
from tests.fakes.client_session import client_session
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import RunningVerifier, revocation_key_pem, verifier_authority
from tests.fakes.software_ak import SoftwareAk, tpm2b
from tests.fakes.tls_material import client_context

DOCUMENT = "application/vnd.api+json"
_MOST_RETRIES = 50


@dataclass(frozen=True)
class Answer:
    """What an agent sees."""

    code: int
    headers: Mapping[str, str]
    body: Any

    @property
    def attributes(self) -> Any:
        """The attributes of the document's resource."""
        return self.body["data"]["attributes"]

    @property
    def error(self) -> dict[str, Any]:
        """The first error."""
        found: dict[str, Any] = self.body["errors"][0]
        return found


def b64(data: bytes) -> str:
    """Bytes as they are in documents."""
    return base64.b64encode(data).decode()


def name_of(ak: SoftwareAk) -> bytes:
    """The TPM name of a key with a SHA-256 name algorithm."""
    return b"\x00\x0b" + hashlib.sha256(ak.tpm2b_public[2:]).digest()


def certification(
    ak: SoftwareAk, challenge: bytes, *, name: bytes | None = None, kind: int = 0x8017
) -> bytes:
    """TPMS_ATTEST by which a TPM certifies its AK, by default its own."""
    certified = name_of(ak) if name is None else name
    head = struct.pack(">IH", 0xFF544347, kind) + tpm2b(certified) + tpm2b(challenge)
    times = struct.pack(">QIIBQ", 12345, 1, 0, 1, 0x2019102300163636)
    return head + times + tpm2b(certified) + tpm2b(certified)


@dataclass
class PushingMachine:
    """`agent_id` at a verifier; `token` once it has one."""

    verifier: RunningVerifier
    agent_id: str = "pushing-1"
    files: dict[str, bytes] = field(default_factory=lambda: {"boot_aggregate": b"the boot"})
    machine: Machine = field(default_factory=lambda: Machine(attestation_key()))
    token: str | None = None
    context: ssl.SSLContext = field(default_factory=lambda: client_context(verifier_authority()))

    def __post_init__(self) -> None:
        self.boot()

    @classmethod
    def with_key(cls, verifier: RunningVerifier, ak: SoftwareAk, **fields: Any) -> Self:
        """One with a key of the test's choice."""
        return cls(verifier, machine=Machine(ak), **fields)

    def boot(self) -> None:
        """A start of the machine, after which IMA has measured what it does first."""
        self.machine.boot()
        self.machine.measure("boot_aggregate", self.files.get("boot_aggregate", b"the boot"))

    def enrolment(self, **changes: object) -> dict[str, object]:
        """The body that adds it; a change to `...` leaves a field out."""
        body: dict[str, object] = {
            "v": None,
            "cloudagent_ip": "127.0.0.1",
            "cloudagent_port": 9002,
            "tpm_policy": '{"mask": "0x0"}',
            "metadata": "{}",
            "runtime_policy": b64(policy_of(self.files).encode())
            if self.files
            else b64(EMPTY_POLICY.encode()),
            "runtime_policy_name": "",
            "mb_policy": None,
            "mb_policy_name": "",
            "ima_sign_verification_keys": "",
            "revocation_key": revocation_key_pem(),
            "accept_tpm_hash_algs": ["sha512", "sha384", "sha256"],
            "accept_tpm_encryption_algs": ["ecc", "rsa"],
            "accept_tpm_signing_algs": ["ecdsa", "rsassa", "rsapss"],
            "ak_tpm": b64(self.machine.ak.tpm2b_public),
            "mtls_cert": "disabled",
            "attestation_mode": "push",
            "supported_version": "2.6",
            **changes,
        }
        return {name: value for name, value in body.items() if value is not ...}

    async def add(self, **changes: object) -> None:
        """Has it added by an operator."""
        path = f"/v2.6/agents/{self.agent_id}"
        answer = await self.verifier.admin("POST", path, self.enrolment(**changes))
        assert answer.code == 200, answer

    async def status(self) -> dict[str, Any]:
        """What operators are shown."""
        answer = await self.verifier.admin("GET", f"/v2.6/agents/{self.agent_id}")
        assert answer.code == 200, answer
        results: dict[str, Any] = answer.results
        return results

    async def call(
        self,
        method: str,
        path: str,
        document: object,
        *,
        token: str | None = None,
        content_type: str | None = DOCUMENT,
        headers: Mapping[str, str] = {},
        source: str = "127.0.0.1",
    ) -> Answer:
        """A call as an agent makes it, from an address of this machine.

        A verifier that is busy with others is asked again, as agents do.
        """
        sent = dict(headers)
        if content_type is not None:
            sent["Content-Type"] = content_type
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        url = f"https://127.0.0.1:{self.verifier.port}{path}"
        async with client_session(local_addr=(source, 0)) as session:

            async def ask() -> Answer:
                async with session.request(
                    method, url, ssl=self.context, data=data, headers=sent, allow_redirects=False
                ) as response:
                    content = await response.read()
                    body = json.loads(content) if content else None
                    shown = {name.lower(): value for name, value in response.headers.items()}
                    return Answer(response.status, shown, body)

            answer = await ask()
            for _ in range(_MOST_RETRIES):
                if answer.code != 503:
                    break
                await asyncio.sleep(0.2)
                answer = await ask()
            return answer

    async def begin(self, agent_id: str | None = None, **how: Any) -> Answer:
        """Asks for a challenge."""
        attributes = {
            "agent_id": agent_id or self.agent_id,
            "authentication_supported": [{"authentication_class": "pop", "authentication_type": "tpm_pop"}],
        }
        document = {"data": {"type": "session", "attributes": attributes}}
        return await self.call("POST", "/v3.0/sessions", document, **how)

    def proof(self, challenge: bytes) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE."""
        attest = certification(self.machine.ak, challenge)
        return attest, self.machine.ak.sign(attest)

    async def prove(
        self, begun: Answer, proof: tuple[bytes, bytes] | None = None, agent_id: str | None = None
    ) -> Answer:
        """Answers a challenge."""
        session_id = begun.body["data"]["id"]
        requested = begun.attributes["authentication_requested"][0]
        challenge = base64.b64decode(requested["chosen_parameters"]["challenge"])
        message, signature = self.proof(challenge) if proof is None else proof
        provided = {
            "authentication_class": "pop",
            "authentication_type": "tpm_pop",
            "data": {"message": b64(message), "signature": b64(signature)},
        }
        attributes = {"agent_id": agent_id or self.agent_id, "authentication_provided": [provided]}
        document = {"data": {"type": "session", "id": session_id, "attributes": attributes}}
        return await self.call("PATCH", f"/v3.0/sessions/{session_id}", document)

    async def log_in(self) -> str:
        """Gets a token."""
        answer = await self.prove(await self.begin())
        assert answer.code == 200, answer
        assert answer.attributes["evaluation"] == "pass", answer
        token: str = answer.attributes["token"]
        self.token = token
        return token

    def offer(self, **changes: object) -> dict[str, Any]:
        """What it can show."""
        ak = self.machine.ak
        is_rsa = ak.scheme is not SignatureScheme.ECDSA
        key = {
            "key_algorithm": "rsa" if is_rsa else "ecc",
            "key_class": "asymmetric",
            "key_size": ak.private_key.key_size,
            "server_identifier": "ak",
            "local_identifier": name_of(ak).hex(),
            "public": b64(ak.tpm2b_public[2:]),
            "allowable_hash_algorithms": [ak.hash_algorithm.label],
            "allowable_signature_schemes": [ak.scheme.label],
        }
        quote = {
            "component_version": "2.0",
            "hash_algorithms": ["sha1", "sha256", "sha384", "sha512"],
            "signature_schemes": ["rsassa", "rsapss", "ecdsa"],
            "available_subjects": {"sha1": list(range(24)), "sha256": list(range(24))},
            "certification_keys": [key],
        }
        log = {
            "entry_count": len(self.machine.lines),
            "supports_partial_access": True,
            "appendable": True,
            "formats": ["text/plain"],
        }
        offered = [
            {"evidence_class": "certification", "evidence_type": "tpm_quote", "capabilities": quote},
            {"evidence_class": "log", "evidence_type": "ima_log", "capabilities": log},
        ]
        attributes = {
            "evidence_supported": offered,
            "system_info": {"boot_time": self.machine.boottime},
            **changes,
        }
        return {"data": {"type": "attestation", "attributes": attributes}}

    async def negotiate(self, document: object = None, **how: Any) -> Answer:
        """Asks what is wanted."""
        path = f"/v3.0/agents/{self.agent_id}/attestations"
        how.setdefault("token", self.token)
        return await self.call("POST", path, document or self.offer(), **how)

    def quote(
        self,
        parameters: Mapping[str, Any],
        *,
        challenge: bytes | None = None,
        more: frozenset[int] = frozenset({16}),
        bank: HashAlgorithm = BANK,
    ) -> str:
        """A quote of what is asked for, and of PCR 16, as agents of the field add it."""
        machine = self.machine
        machine.clock += 7
        asked = parameters["selected_subjects"][parameters["hash_algorithm"]]
        values = {index: bytes(bank.size) for index in {*asked, *more}}
        if 10 in values and bank is BANK:
            values[10] = machine.pcr_10
        if 16 in values:
            values[16] = bank.digest(b"the key")
        return machine.ak.quote(
            base64.b64decode(parameters["challenge"]) if challenge is None else challenge,
            PcrValues(bank, dict(sorted(values.items()))),
            clock=machine.clock,
            reset_count=machine.reset_count,
            restart_count=machine.restart_count,
        )

    def evidence(self, negotiated: Answer, quote: str | None = None) -> dict[str, Any]:
        """What it was asked for."""
        collected = []
        for item in negotiated.attributes["evidence_requested"]:
            kind = {name: item[name] for name in ("evidence_class", "evidence_type")}
            parameters = item["chosen_parameters"]
            if item["evidence_type"] == "tpm_quote":
                text = self.quote(parameters) if quote is None else quote
                message, signature, subjects = text.removeprefix("r").split(":")
                data: dict[str, object] = {
                    "message": message,
                    "signature": signature,
                    "subject_data": subjects,
                }
            else:
                lines = self.machine.lines[parameters["starting_offset"] :]
                data = {
                    "entry_count": len(lines),
                    "entries": "".join(f"{line.decode()}\n" for line in lines),
                }
            collected.append({**kind, "data": data})
        return {"data": {"type": "attestation", "attributes": {"evidence_collected": collected}}}

    async def submit(self, negotiated: Answer, document: object = None, **how: Any) -> Answer:
        """Sends evidence."""
        how.setdefault("token", self.token)
        return await self.call(
            "PATCH", negotiated.headers["location"], document or self.evidence(negotiated), **how
        )

    async def attest(self) -> Answer:
        """A whole attestation, up to its receipt, whatever the interval is."""
        await self.hurry()
        if self.token is None:
            await self.log_in()
        negotiated = await self.negotiate()
        assert negotiated.code == 201, negotiated
        received = await self.submit(negotiated)
        assert received.code == 202, received
        return received

    async def hurry(self) -> None:
        """Lets the next attestation come now, whatever the interval is."""
        await self.verifier.change("UPDATE push_attestations SET evidence_at = evidence_at - 360000")

    async def until_passed(self, count: int) -> None:
        """Returns when it has passed so often, whether it is overdue by now or not."""

        async def look() -> bool:
            return bool((await self.status())["attestation_count"] >= count)

        await eventually(look)

    async def until_judged(self, status: str, count: int | None = None) -> dict[str, Any]:
        """The first status in which the agent stands so, after so many passes."""

        async def look() -> dict[str, Any] | None:
            shown = await self.status()
            is_so = shown["attestation_status"] == status
            return shown if is_so and (count is None or shown["attestation_count"] == count) else None

        found: dict[str, Any] = await eventually(look)
        return found
