"""Calls to the three peers: registrar, verifier and agent. Failures say whom, where and what to check."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec

from keylime.errors import MalformedMessage, PeerUnreachable
from keylime.http.replies import Reply
from keylime.identifiers import AgentId
from keylime.messages.agent import KeyVerification, QuoteReply, UKeyRequest
from keylime.messages.envelope import parse_body
from keylime.messages.history import AgentHistory, HistoryEvent
from keylime.messages.registrar import RegisteredAgent
from keylime.messages.verifier import AddAgentRequest, UpdateAgentRequest
from keylime.messages.versions import (
    AGENT_VERSIONS,
    CURRENT_VERSION,
    SUPPORTED_VERSIONS,
    AgentVersions,
    ServerVersions,
    negotiate,
)
from keylime.tpm.pcr import MEASURED_BOOT_PCRS
from keylime_tenant.config import Address
from keylime_tenant.errors import CommandFailed, OlderRelease, PutOff
from keylime_tenant.peer import Peer, Trouble
from keylime_tenant.told_status import ToldStatus, told_status

ResultT = TypeVar("ResultT")

log = logging.getLogger("keylime.tenant")

# What is wrong when the handshake fails, by who is at the other end.
_SERVER_TRUST = (
    "its certificate must come from a CA in [tenant] trusted_server_ca (default: cv_ca/cacert.crt; "
    "a registrar with tls_dir = generate has its own reg_ca/cacert.crt), "
    "and [tenant] client_cert from its trusted_client_ca"
)
_AGENT_TRUST = (
    "the agent's trusted_client_ca must hold the CA of [tenant] client_cert (copy cv_ca/cacert.crt of the "
    "verifier), and the agent must hold the key that it registered (restart it to register again)"
)
_HANG_UP = (
    "servers hang up on a client certificate that they do not trust: "
    "the CA of [tenant] client_cert must be in their trusted_client_ca"
)
_SILENCE = ", which is [tenant] connect_timeout"
_FIREWALL = "that no firewall drops what is sent there"
_FORBIDDEN = (
    "; it takes this from administrators only: "
    "[tenant] client_cert must come from a CA in its trusted_client_ca"
)


_PUT_OFF = 503  # has too much to do, or its database is away
# In every record of an agent, and in none of the other service.
_OF_REGISTRARS, _OF_VERIFIERS = "aik_tpm", "operational_state"

Doing: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Around what may last: says what is going on when it does."""


def _silently(_what: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where an address is from, for whoever has to correct it."""

    typed: tuple[str, ...]
    options: str
    tls_port: int  # where such a service listens by default

    @property
    def advice(self) -> str:
        """What to look at: the flags that were typed, else the options."""
        return " and ".join(self.typed) or self.options


class Service:
    """A registrar or verifier; the API version is negotiated before the first call."""

    def __init__(
        self,
        name: str,
        address: Address,
        peer: Peer,
        *,
        where: Whereabouts,
        doing: Doing = _silently,
    ) -> None:
        self.name = name
        self.address = address
        self._where = where
        self._peer = peer
        self._doing = doing
        self._version: str | None = None

    @property
    def place(self) -> str:
        """ "the verifier at https://127.0.0.1:8881"."""
        return f"the {self.name} at {self.address.url()}"

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: msgspec.Struct | None = None,
    ) -> Reply:
        """The answer to `method` on `path` (without the version). Raises PeerUnreachable."""
        return await self._request(method, f"/v{await self.version()}{path}", query=query, body=body)

    async def version(self) -> str:
        """The API version to use, asked for once. Raises PeerUnreachable, CommandFailed."""
        if self._version is None:
            self._version = await self._negotiate()
        return self._version

    async def probe(self, path: str) -> Reply:
        """The answer to a question outside of the versions. Raises PeerUnreachable."""
        return await self._request("GET", path)

    async def audit(self, since: int | None) -> list[HistoryEvent]:
        """All that was done, and refused, since a time; oldest first.

        Raises CommandFailed, and OlderRelease of a service that keeps none.
        """
        events: list[HistoryEvent] = []
        while True:
            query = {"after": str(events[-1].id if events else 0)}
            if since is not None:
                query["since"] = str(since)
            reply = await self.call("GET", "/audit", query=query)
            if reply.code == 404:
                raise OlderRelease(f"{self.place} keeps no audit: its release is older")
            if reply.code != 200:
                raise self.refusal(reply, "tell what was done")
            found = read_results(reply, AgentHistory, self.place)
            events.extend(found.events)
            if not found.more or not found.events:
                return events

    async def close(self) -> None:
        """Closes the connections."""
        await self._peer.close()

    def refusal(self, reply: Reply, intention: str) -> CommandFailed:
        """The error for an answer that is not the wanted one."""
        hint = _FORBIDDEN if reply.code in (401, 403) else ""
        kind = PutOff if reply.code == _PUT_OFF else CommandFailed
        return kind(f"{self.place} did not {intention}: {reply.code} {reply.status}{hint}")

    async def agents(self) -> Reply:
        """The answer to the list of ids. Raises CommandFailed."""
        raise NotImplementedError

    def stranger(self) -> CommandFailed:
        """The error for an answer that only another kind of service gives."""
        return CommandFailed(
            f"{self.place} does not answer as a {self.name} does: check {self._where.advice}; "
            f"the TLS port of a {self.name} is {self._where.tls_port} unless it was configured otherwise"
        )

    async def _negotiate(self) -> str:
        reply = await self._request("GET", "/version")
        if reply.code == _PUT_OFF:  # what it speaks is not known for that, and would be taken as known
            raise self.refusal(reply, "tell its API versions")
        if reply.code != 200:
            return CURRENT_VERSION  # servers without the endpoint speak ours, or refuse the call itself
        try:
            offered = parse_body(reply.results, ServerVersions)
        except MalformedMessage:
            return CURRENT_VERSION
        version = negotiate((*offered.supported_versions, offered.current_version))
        if version is None:
            raise CommandFailed(
                f"{self.place} has no compatible API version: it speaks "
                f"{', '.join(offered.supported_versions)}, the tenant {', '.join(SUPPORTED_VERSIONS)}"
            )
        log.info("Using API version %s for %s communication", version, self.name)
        return version

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: msgspec.Struct | None = None,
    ) -> Reply:
        try:
            with self._doing(f"waiting for the answer of {self.place}"):
                return await self._peer.request(method, path, query=query, body=body)
        except PeerUnreachable as error:
            raise await self._unreachable(error) from error

    async def _unreachable(self, error: PeerUnreachable) -> PeerUnreachable:
        cause, check = without_address(error, self.address.url()), self._where.advice
        trouble = await self._peer.trouble(error)
        if trouble is Trouble.NO_TLS:
            return PeerUnreachable(
                f"{self.place} does not speak TLS; its TLS port is {self._where.tls_port} unless it was "
                f"configured otherwise: check {check}"
            )
        if error.is_explained or trouble is Trouble.OWN_CERTIFICATE:
            option = "trusted_server_ca" if "CERTIFICATE_VERIFY_FAILED" in cause else "client_cert"
            return PeerUnreachable(f"cannot reach {self.place}: {cause} ([tenant] {option})")
        if trouble is Trouble.TRUST:
            check = _SERVER_TRUST
        elif trouble is Trouble.HANG_UP:
            check = f"{_HANG_UP}; also check {check}"
        elif trouble is Trouble.SILENCE:
            cause += _SILENCE
            check = f"check that it is running, {check}, and {_FIREWALL}"
        else:
            check = f"check that it is running, and {check}"
        return PeerUnreachable(f"cannot reach {self.place}: {cause} ({check})")


class RegistrarClient(Service):
    """The registrar's administrative API."""

    def __init__(
        self, address: Address, peer: Peer, typed: Sequence[str] = (), doing: Doing = _silently
    ) -> None:
        """`typed` are the flags of the command line that the address is from."""
        where = Whereabouts(tuple(typed), "[tenant] registrar_ip and registrar_port (-r, -rp)", 8891)
        super().__init__("registrar", address, peer, where=where, doing=doing)

    async def agent(self, agent_id: AgentId) -> tuple[RegisteredAgent, Reply] | None:
        """The record of an active agent, typed and as sent; None when the registrar has none."""
        reply = await self.call("GET", f"/agents/{agent_id}")
        if reply.code == 404:
            return None
        if reply.code != 200:
            raise self.refusal(reply, f"tell about agent {agent_id}")
        self._demand_own(reply)
        return read_results(reply, RegisteredAgent, self.place), reply

    async def agents(self) -> Reply:
        """The answer to the list of ids. Raises CommandFailed."""
        reply = await self.call("GET", "/agents/")
        if reply.code == 200 and any(isinstance(one, list) for one in _ids(reply)):
            raise self.stranger()
        return reply

    async def delete(self, agent_id: AgentId) -> Reply:
        """The answer to a deletion. Raises CommandFailed where it would be one of a verifier's agent."""
        reply = await self.call("GET", f"/agents/{agent_id}")
        if reply.code == 200:
            self._demand_own(reply)
        return await self.call("DELETE", f"/agents/{agent_id}")

    def _demand_own(self, reply: Reply) -> None:
        found = results_of(reply)
        if _OF_VERIFIERS in found and _OF_REGISTRARS not in found:
            raise self.stranger()


class VerifierClient(Service):
    """The verifier's administrative API."""

    def __init__(
        self, address: Address, peer: Peer, typed: Sequence[str] = (), doing: Doing = _silently
    ) -> None:
        """`typed` are the flags of the command line that the address is from."""
        where = Whereabouts(tuple(typed), "[tenant] verifier_ip and verifier_port (-v, -vp)", 8881)
        super().__init__("verifier", address, peer, where=where, doing=doing)

    async def status(self, agent_id: AgentId) -> ToldStatus | None:
        """The status of an agent; None when the id is not known."""
        reply = await self.call("GET", f"/agents/{agent_id}")
        if reply.code == 404:
            return None
        if reply.code != 200:
            raise self.refusal(reply, f"tell about agent {agent_id}")
        found = results_of(reply)
        if _OF_REGISTRARS in found and _OF_VERIFIERS not in found:
            raise self.stranger()
        return told_status(found)

    async def statuses(self, verifier_id: str) -> dict[str, ToldStatus]:
        """The statuses of all agents by their ids. Raises CommandFailed."""
        reply = await self.call("GET", "/agents/", query={"bulk": "True", "verifier": verifier_id})
        if reply.code != 200:
            raise self.refusal(reply, "tell about its agents")
        found = results_of(reply)
        if isinstance(found.get("uuids"), list):  # of whom the question for all at once means nothing
            raise self.stranger()
        return {agent_id: told_status(one) for agent_id, one in found.items() if isinstance(one, dict)}

    async def agents(self, verifier_id: str = "") -> Reply:
        """The answer to the list of ids. Raises CommandFailed."""
        reply = await self.call("GET", "/agents/", query={"verifier": verifier_id})
        if reply.code == 200 and any(isinstance(one, str) for one in _ids(reply)):
            raise self.stranger()
        return reply

    async def add(self, agent_id: AgentId, request: AddAgentRequest) -> Reply:
        """The answer to an added agent."""
        return await self.call("POST", f"/agents/{agent_id}", body=request)

    async def update(self, agent_id: AgentId, request: UpdateAgentRequest) -> Reply:
        """The answer to a change of an enrolment, from verifiers that can change one."""
        return await self.call("PUT", f"/agents/{agent_id}", body=request)

    async def delete(self, agent_id: AgentId) -> Reply:
        """The answer to a deletion: 200 done, 202 later, 404 not there."""
        return await self.call("DELETE", f"/agents/{agent_id}")

    async def act(self, agent_id: AgentId, action: str) -> Reply:
        """The answer to "reactivate" or "stop"."""
        return await self.call("PUT", f"/agents/{agent_id}/{action}")

    async def history(self, agent_id: AgentId) -> list[HistoryEvent]:
        """What happened to an agent, oldest first, also to one that is gone. Raises CommandFailed."""
        events: list[HistoryEvent] = []
        while True:
            query = {"after": str(events[-1].id if events else 0)}
            reply = await self.call("GET", f"/agents/{agent_id}/history", query=query)
            if reply.code == 404 and reply.status == "agent id not found":
                raise CommandFailed(f"{self.place} knows nothing of agent {agent_id}, now or before")
            if reply.code == 404:
                raise CommandFailed(f"{self.place} keeps no history: its release is older")
            if reply.code != 200:
                raise self.refusal(reply, f"tell what happened to agent {agent_id}")
            found = read_results(reply, AgentHistory, self.place)
            events.extend(found.events)
            if not found.more or not found.events:
                return events

    async def revocations(self, agent_id: AgentId | None) -> Reply:
        """The answer to what became of revocations: those about one agent, or all."""
        return await self.call("GET", "/revocations", query=None if agent_id is None else {"agent": agent_id})

    @staticmethod
    def policy_path(kind: str, name: str, *below: str) -> str:
        """The path of a policy of `kind` ("allowlists", "mbpolicies"), or of what is below it."""
        return "/".join(("", kind, quote(name, safe=""), *below))

    async def policy(self, method: str, kind: str, name: str, body: msgspec.Struct | None = None) -> Reply:
        """The answer to `method` on a policy of `kind` ("allowlists", "mbpolicies"); no name: the list."""
        return await self.call(method, f"/{kind}/{quote(name, safe='')}", body=body)


class AgentApi:
    """The agent's API, for the time of one enrolment."""

    def __init__(
        self, address: Address, peer: Peer, *, scheme: str = "https", doing: Doing = _silently
    ) -> None:
        self._url = address.url(scheme)
        self._place = f"the agent at {self._url}"
        self._peer = peer
        self._doing = doing

    async def negotiate(self) -> str:
        """The API version to use; ours when the agent tells none. Raises CommandFailed, PeerUnreachable."""
        reply = await self._request("GET", "/version")
        if reply.code != 200:
            return CURRENT_VERSION
        try:
            offered = parse_body(reply.results, AgentVersions)
        except MalformedMessage:
            return CURRENT_VERSION
        remote = offered.supported_versions or [offered.supported_version]
        version = negotiate(remote, AGENT_VERSIONS)
        if version is None:
            raise CommandFailed(
                f"{self._place} has no compatible API version: it speaks {', '.join(remote)}, the tenant "
                f"{', '.join(AGENT_VERSIONS)}"
            )
        log.info("Using API version %s for agent communication", version)
        return version

    async def identity_quote(self, version: str, nonce: str) -> QuoteReply:
        """An identity quote over `nonce`, not yet checked. Raises PeerUnreachable also for 503 and 504."""
        reply = await self._request("GET", f"/v{version}/quotes/identity", query={"nonce": nonce})
        if reply.code in (503, 504):
            raise PeerUnreachable(f"{self._place} is not ready: {reply.code} {reply.status}")
        if reply.code != 200:
            raise self._refusal(reply, "give an identity quote")
        return read_results(reply, QuoteReply, self._place)

    async def sends_boot_log(self, version: str, nonce: str) -> bool | None:
        """Whether the agent has a boot event log to send; None when that cannot be told now."""
        mask = sum(1 << index for index in MEASURED_BOOT_PCRS)
        query = {"nonce": nonce, "mask": hex(mask), "partial": "1", "ima_ml_entry": "0"}
        try:
            reply = await self._request("GET", f"/v{version}/quotes/integrity", query=query)
            if reply.code != 200:
                return None
            return bool(read_results(reply, QuoteReply, self._place).mb_measurement_list)
        except (PeerUnreachable, MalformedMessage):
            return None

    async def send_u(self, version: str, request: UKeyRequest) -> None:
        """Hands over U and the encrypted payload. Raises CommandFailed, PeerUnreachable."""
        reply = await self._request("POST", f"/v{version}/keys/ukey", body=request)
        if reply.code != 200:
            raise self._refusal(reply, "take the key share U")

    async def key_proof(self, version: str, challenge: str) -> str | None:
        """The agent's HMAC of `challenge` under K, in hex; None while it has no K."""
        reply = await self._request("GET", f"/v{version}/keys/verify", query={"challenge": challenge})
        return read_results(reply, KeyVerification, self._place).hmac if reply.code == 200 else None

    async def close(self) -> None:
        """Closes the connections."""
        await self._peer.close()

    def _refusal(self, reply: Reply, intention: str) -> CommandFailed:
        return CommandFailed(f"{self._place} did not {intention}: {reply.code} {reply.status}")

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: msgspec.Struct | None = None,
    ) -> Reply:
        try:
            with self._doing(f"waiting for the answer of {self._place}"):
                return await self._peer.request(method, path, query=query, body=body)
        except PeerUnreachable as error:
            cause = without_address(error, self._url)
            trouble = await self._peer.trouble(error)
            if trouble is Trouble.NO_TLS:
                raise CommandFailed(
                    f"{self._place} does not speak TLS: check -t and -tp, and [agent] enable_agent_mtls there"
                ) from error
            if trouble is Trouble.OWN_CERTIFICATE:
                raise CommandFailed(f"no trust between us and {self._place}: {cause}") from error
            if trouble is Trouble.TRUST:
                # Another try cannot help: not a PeerUnreachable.
                raise CommandFailed(
                    f"no trust between us and {self._place}: {cause} ({_AGENT_TRUST})"
                ) from error
            if trouble is Trouble.HANG_UP:
                reason = _HANG_UP
            elif trouble is Trouble.SILENCE:
                cause += _SILENCE
                reason = f"check -t/-tp, that the agent is running, and {_FIREWALL}"
            else:
                reason = "check -t/-tp and that the agent is running"
            raise PeerUnreachable(f"cannot reach {self._place}: {cause} ({reason})") from error


def without_address(error: PeerUnreachable, url: str) -> str:
    """What went wrong, without the address that stands in front, and in our message already."""
    return str(error).removeprefix(f"{url}: ")


def read_results(reply: Reply, kind: type[ResultT], place: str) -> ResultT:
    """The results as `kind`. Raises MalformedMessage, which names the peer and the field."""
    try:
        return parse_body(reply.results, kind)
    except MalformedMessage as error:
        raise MalformedMessage(f"{place} sent an answer of another shape: {error}") from error


def _ids(reply: Reply) -> list[Any]:
    """What stands in a list of agents: ids, of verifiers each in a list of its own."""
    ids = results_of(reply).get("uuids")
    return ids if isinstance(ids, list) else []


def answer_document(reply: Reply) -> dict[str, Any]:
    """The whole answer as plain values, as commands print it."""
    return {"code": reply.code, "status": reply.status, "results": results_of(reply)}


def results_of(reply: Reply) -> dict[str, Any]:
    """The results as plain values, unknown keys included; null becomes empty. Raises MalformedMessage."""
    results: Any = parse_body(reply.results, object)
    if not isinstance(results, dict | None):
        raise MalformedMessage(f"expected an object in the results, not {type(results).__name__}")
    return results or {}
