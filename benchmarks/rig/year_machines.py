"""The machines of a simulated year: they register, attest over mutual TLS, age, boot and are updated."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext

import aiohttp
import msgspec

from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.messages.revocation import RevocationMessage
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.running_verifier import revocation_key_pem
from tests.fakes.software_identity import SoftwareIdentity
from tests.fakes.tls_material import Authority, self_signed

POLICY = "fleet"
_CERTIFICATE_DAYS = (-1, 365)
_PROGRAMS = 20
_GROWTH = 5
_UPDATED = 4  # programs, by each update
_BUSY = (429, 503)
_PATIENCE_S = 100.0
_PAUSE_S = 0.2


class ServicesAuthority(Authority):
    """The CA that machines trust clients of, as its file says when a machine starts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def trusted_by(self, context: SSLContext) -> None:
        context.load_verify_locations(self._path)


class Releases:
    """What is installed on all machines, release by release; the policy allows every one so far."""

    def __init__(self) -> None:
        self.number = 0
        self.files = {"boot_aggregate": b"the firmware"}
        self.files |= {f"/usr/bin/program-{number}": b"release 0" for number in range(_PROGRAMS)}
        self._digests: dict[str, list[str]] = {}
        self._allow(self.files)

    def publish(self) -> Mapping[str, bytes]:
        """The files that the next release changes."""
        self.number += 1
        first = self.number * _UPDATED
        names = [f"/usr/bin/program-{number % _PROGRAMS}" for number in range(first, first + _UPDATED)]
        changed = {name: f"release {self.number}".encode() for name in names}
        self._allow(changed)
        self.files |= changed
        return changed

    @property
    def policy(self) -> str:
        """The runtime policy, with some programs that are run now and then."""
        document = json.loads(EMPTY_POLICY)
        document["meta"]["generator"] = 3
        tools = {tool_name(number): [_digest_of(tool_name(number).encode())] for number in range(1000)}
        document["digests"] = {**tools, **self._digests}
        return json.dumps(document)

    def _allow(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self._digests.setdefault(name, []).append(_digest_of(content))


def tool_name(number: int) -> str:
    """A program whose content is its name."""
    return f"/usr/lib/tools/tool-{number}"


def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True, order=True)
class Notice:
    """What a machine was told about another one."""

    kind: str
    agent_id: str


def notice_of(text: str) -> Notice:
    """What a revocation message, as JSON text, says."""
    message = msgspec.json.decode(text, type=RevocationMessage)
    return Notice(message.type, message.agent_id)


class YearMachine:
    """One machine: what happens to it is what its methods are called."""

    def __init__(self, number: int, authority: Authority, releases: Releases, registrar_url: str) -> None:
        self._identity = SoftwareIdentity()
        self._url = registrar_url
        agent_id = f"{number:08x}-0000-4000-8000-{number:012x}"
        self.agent = AttestingAgent(agent_id, authority, files=dict(releases.files), ak=self._identity.ak)
        self.agent.identity = self_signed(agent_id, days=_CERTIFICATE_DAYS)
        self._tools = number  # so that lists are different

    @property
    def agent_id(self) -> str:
        return self.agent.agent_id

    @property
    def questions(self) -> int:
        """How many quotes it was asked for."""
        return len(self.agent.questions)

    def notices(self) -> set[Notice]:
        """All that it was ever told about others, or itself."""
        return {notice_of(one.msg) for one in self.agent.revocations}

    async def start(self) -> None:
        """The agent starts: it listens, and registers."""
        self.agent.start()
        await self._register()

    async def restart_agent(self) -> None:
        """The service is restarted, the machine goes on."""
        await self.agent.stop()
        await self.start()

    async def reboot(self) -> None:
        """Everything is measured anew."""
        await self.agent.stop()
        self.agent.reboot()
        await self.start()

    async def renew(self) -> None:
        """A new certificate of the same key."""
        key = self.agent.identity.key
        self.agent.show(self_signed(self.agent_id, key, days=_CERTIFICATE_DAYS))
        await self._register()

    def run_tools(self) -> None:
        """Some programs run that did not since it booted."""
        for _ in range(_GROWTH):
            self._tools += 1
            name = tool_name(self._tools % 1000)
            self.agent.machine.measure(name, name.encode())

    def update(self, changed: Mapping[str, bytes]) -> None:
        """Files are replaced, and run."""
        for name, content in changed.items():
            self.agent.files[name] = content
            self.agent.machine.measure(name, content)

    def enrolment(self) -> dict[str, object]:
        """What an operator adds it to the verifier with."""
        return {
            "cloudagent_ip": self.agent.ip,
            "cloudagent_port": self.agent.port,
            "v": base64.b64encode(bytes(range(32))).decode(),
            "tpm_policy": '{"mask": "0x0"}',
            "metadata": "{}",
            "runtime_policy": "",
            "runtime_policy_name": POLICY,
            "mb_policy": None,
            "mb_policy_name": "",
            "ima_sign_verification_keys": "",
            "revocation_key": revocation_key_pem(),
            "accept_tpm_hash_algs": ["sha256"],
            "accept_tpm_encryption_algs": ["ecc", "rsa"],
            "accept_tpm_signing_algs": ["ecdsa", "rsassa"],
            "ak_tpm": base64.b64encode(self._identity.ak.tpm2b_public).decode(),
            "mtls_cert": self.agent.identity.pem,
            "supported_version": self.agent.versions[-1],
        }

    async def _register(self) -> None:
        """As agents do: again and again while the registrar is away or busy."""
        async with asyncio.timeout(_PATIENCE_S), aiohttp.ClientSession() as session:
            while True:
                if await self._registered(session):
                    return
                await asyncio.sleep(_PAUSE_S)

    async def _registered(self, session: aiohttp.ClientSession) -> bool:
        url = f"{self._url}/v2.5/agents/{self.agent_id}"
        body = self._identity.registration(
            mtls_cert=self.agent.identity.pem, ip=self.agent.ip, port=self.agent.port
        )
        try:
            registered = await _call(session, "POST", url, body)
            if registered is None:
                return False
            tag = self._identity.answer(registered["blob"], self.agent_id)
            return await _call(session, "PUT", url, {"auth_tag": tag}) is not None
        except aiohttp.ClientConnectionError:
            return False


async def _call(session: aiohttp.ClientSession, method: str, url: str, body: object) -> dict[str, str] | None:
    """The results of a call of the registrar; none while it is busy. Raises RuntimeError."""
    async with session.request(method, url, json=body) as answer:
        if answer.status in _BUSY:
            return None
        if answer.status != 200:
            raise RuntimeError(f"{method} {url}: {answer.status} {await answer.text()}")
        results: dict[str, str] = (await answer.json())["results"]
        return results
