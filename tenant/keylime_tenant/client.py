"""Calls to the three peers: registrar, verifier and agent. Failures say whom, where and what to check."""

import ssl
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from keylime.errors import MalformedMessage, PeerUnreachable
from keylime.http.client import Peer, Reply
from keylime.identifiers import AgentId
from keylime.messages.agent import KeyVerification, QuoteReply, UKeyRequest
from keylime.messages.envelope import parse_body
from keylime.messages.registrar import RegisteredAgent
from keylime.messages.verifier import AddAgentRequest
from keylime.messages.versions import (
    AGENT_VERSIONS,
    CURRENT_VERSION,
    AgentVersions,
    ServerVersions,
    negotiate,
)
from keylime_tenant.config import Address
from keylime_tenant.errors import CommandFailed

ResultT = TypeVar("ResultT")

# What is wrong when the handshake fails, by who is at the other end.
_SERVER_TRUST = (
    "its certificate must come from a CA in [tenant] trusted_server_ca (default: cv_ca/cacert.crt; "
    "a registrar with tls_dir = generate has its own reg_ca/cacert.crt), "
    "and [tenant] client_cert from its trusted_client_ca"
)
_AGENT_TRUST = (
    "the agent's trusted_client_ca must hold the CA of [tenant] client_cert (copy cv_ca/cacert.crt of the "
    "verifier), and the agent must present the certificate that it registered (restart it to register again)"
)
_HANG_UP = (
    "servers hang up on a client certificate that they do not trust: "
    "the CA of [tenant] client_cert must be in their trusted_client_ca"
)
_FORBIDDEN = (
    "; it takes this from administrators only: "
    "[tenant] client_cert must come from a CA in its trusted_client_ca"
)


class Service:
    """A registrar or verifier; the API version is negotiated before the first call."""

    def __init__(self, name: str, address: Address, options: str, peer: Peer) -> None:
        self.name = name
        self.address = address
        self._options = options
        self._peer = peer
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
        if self._version is None:
            self._version = await self._negotiate()
        return await self._request(method, f"/v{self._version}{path}", query=query, body=body)

    async def close(self) -> None:
        """Closes the connections."""
        await self._peer.close()

    def refusal(self, reply: Reply, intention: str) -> CommandFailed:
        """The error for an answer that is not the wanted one."""
        hint = _FORBIDDEN if reply.code in (401, 403) else ""
        return CommandFailed(f"{self.place} did not {intention}: {reply.code} {reply.status}{hint}")

    async def _negotiate(self) -> str:
        reply = await self._request("GET", "/version")
        if reply.code != 200:
            return CURRENT_VERSION  # servers without the endpoint speak ours, or refuse the call itself
        try:
            offered = parse_body(reply.results, ServerVersions)
        except MalformedMessage:
            return CURRENT_VERSION
        version = negotiate((*offered.supported_versions, offered.current_version))
        if version is None:
            raise CommandFailed(
                f"{self.place} speaks none of our API versions, only {offered.supported_versions}"
            )
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
            return await self._peer.request(method, path, query=query, body=body)
        except PeerUnreachable as error:
            reason = f"check {self._options}"
            if is_tls_failure(error):
                reason = _SERVER_TRUST
            elif is_hang_up(error):
                reason = f"{_HANG_UP}; also {reason}"
            raise PeerUnreachable(f"cannot reach {self.place}: {error} ({reason})") from error


class Registrar(Service):
    """The registrar's administrative API."""

    def __init__(self, address: Address, peer: Peer) -> None:
        super().__init__("registrar", address, "-r/-rp, or [tenant] registrar_ip and registrar_port", peer)

    async def agent(self, agent_id: AgentId) -> tuple[RegisteredAgent, Reply] | None:
        """The record of an active agent, typed and as sent; None when the registrar has none."""
        reply = await self.call("GET", f"/agents/{agent_id}")
        if reply.code == 404:
            return None
        if reply.code != 200:
            raise self.refusal(reply, f"tell about agent {agent_id}")
        return read_results(reply, RegisteredAgent, self.place), reply

    async def agents(self) -> Reply:
        """The answer to the list of ids."""
        return await self.call("GET", "/agents/")

    async def delete(self, agent_id: AgentId) -> Reply:
        """The answer to a deletion."""
        return await self.call("DELETE", f"/agents/{agent_id}")


class Verifier(Service):
    """The verifier's administrative API."""

    def __init__(self, address: Address, peer: Peer) -> None:
        super().__init__("verifier", address, "-v/-vp, or [tenant] verifier_ip and verifier_port", peer)

    async def status(self, agent_id: AgentId) -> dict[str, Any] | None:
        """The status of an agent, with all fields that were sent; None when the id is not known."""
        reply = await self.call("GET", f"/agents/{agent_id}")
        if reply.code == 404:
            return None
        if reply.code != 200:
            raise self.refusal(reply, f"tell about agent {agent_id}")
        return results_of(reply)

    async def agents(self, verifier_id: str, *, bulk: bool) -> Reply:
        """The answer to the list of ids, or of whole statuses."""
        query = {"bulk": "True", "verifier": verifier_id} if bulk else {"verifier": verifier_id}
        return await self.call("GET", "/agents/", query=query)

    async def add(self, agent_id: AgentId, request: AddAgentRequest) -> Reply:
        """The answer to an added agent."""
        return await self.call("POST", f"/agents/{agent_id}", body=request)

    async def delete(self, agent_id: AgentId) -> Reply:
        """The answer to a deletion: 200 done, 202 later, 404 not there."""
        return await self.call("DELETE", f"/agents/{agent_id}")

    async def act(self, agent_id: AgentId, action: str) -> Reply:
        """The answer to "reactivate" or "stop"."""
        return await self.call("PUT", f"/agents/{agent_id}/{action}")

    async def revocations(self, agent_id: AgentId | None) -> Reply:
        """The answer to what became of revocations: those about one agent, or all."""
        return await self.call("GET", "/revocations", query=None if agent_id is None else {"agent": agent_id})

    async def policy(self, method: str, kind: str, name: str, body: msgspec.Struct | None = None) -> Reply:
        """The answer to `method` on a policy of `kind` ("allowlists", "mbpolicies"); no name: the list."""
        return await self.call(method, f"/{kind}/{quote(name, safe='')}", body=body)


class AgentClient:
    """The agent's API, for the time of one enrolment."""

    def __init__(self, address: Address, peer: Peer, *, scheme: str = "https") -> None:
        self._place = f"the agent at {address.url(scheme)}"
        self._peer = peer

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
            raise CommandFailed(f"{self._place} speaks none of our API versions, only {', '.join(remote)}")
        return version

    async def identity_quote(self, version: str, nonce: str) -> tuple[QuoteReply, Reply]:
        """An identity quote over `nonce`, not yet checked. Raises PeerUnreachable also for 503 and 504."""
        reply = await self._request("GET", f"/v{version}/quotes/identity", query={"nonce": nonce})
        if reply.code in (503, 504):
            raise PeerUnreachable(f"{self._place} is not ready: {reply.code} {reply.status}")
        if reply.code != 200:
            raise self._refusal(reply, "give an identity quote")
        return read_results(reply, QuoteReply, self._place), reply

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
            return await self._peer.request(method, path, query=query, body=body)
        except PeerUnreachable as error:
            if is_tls_failure(error):
                # Another try cannot help: not a PeerUnreachable.
                raise CommandFailed(
                    f"no trust between us and {self._place}: {error} ({_AGENT_TRUST})"
                ) from error
            reason = _HANG_UP if is_hang_up(error) else "check -t/-tp and that the agent is running"
            raise PeerUnreachable(f"cannot reach {self._place}: {error} ({reason})") from error


def is_tls_failure(error: BaseException) -> bool:
    """Whether certificates, not the network, are the reason of `error`."""
    kinds = (ssl.SSLError, aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)
    return any(isinstance(cause, kinds) for cause in _causes(error))


def is_hang_up(error: BaseException) -> bool:
    """Whether the peer took the connection and dropped it: in TLS 1.3 a refused certificate looks so."""
    kinds = (aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError)
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def read_results(reply: Reply, kind: type[ResultT], place: str) -> ResultT:
    """The results as `kind`. Raises MalformedMessage, which names the peer and the field."""
    try:
        return parse_body(reply.results, kind)
    except MalformedMessage as error:
        raise MalformedMessage(f"{place} sent an answer of another shape: {error}") from error


def answer_document(reply: Reply) -> dict[str, Any]:
    """The whole answer as plain values, as commands print it."""
    return {"code": reply.code, "status": reply.status, "results": results_of(reply)}


def results_of(reply: Reply) -> dict[str, Any]:
    """The results as plain values, unknown keys included; null becomes empty. Raises MalformedMessage."""
    results: Any = parse_body(reply.results, object)
    if not isinstance(results, dict | None):
        raise MalformedMessage(f"expected an object in the results, not {type(results).__name__}")
    return results or {}
