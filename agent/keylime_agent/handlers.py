"""The agent's REST API: routes, and the answers to requests that no route takes.

Both are those of docs/reference/rest-api.md, 3.2 and 1.5.
"""

import logging
import re
from collections.abc import Callable
from typing import Protocol

from cryptography import x509

from keylime.errors import CredentialError
from keylime.http.exchange import HttpError, Request, Response, Role
from keylime.http.openapi import Api, openapi_route
from keylime.http.operation import Operation, QueryField
from keylime.http.routing import Route
from keylime.messages.agent import (
    AgentInfo,
    KeyVerification,
    PublicKeyReply,
    QuoteReply,
    UKeyRequest,
    VKeyRequest,
)
from keylime.messages.revocation import SignedRevocation
from keylime.messages.versions import AGENT_VERSIONS, VERSION_NOT_SUPPORTED, AgentVersions
from keylime.pki.roles import is_nodes, is_services
from keylime_agent.queries import (
    MAX_NONCE,
    IntegrityQuery,
    parse_challenge,
    parse_identity_query,
    parse_integrity_query,
)
from keylime_agent.quoting import QuoteAlgorithms, QuoteFailed

log = logging.getLogger(__name__)

_VERSIONED = re.compile(r"/v?(\d{1,3}\.\d{1,3})(/.*)?")


_NO_QUOTE = "Unable to retrieve quote"

AGENT_API = Api(
    title="Keylime agent",
    versions=AGENT_VERSIONS,
    unrouted="Unknown paths and versions are answered with 400, unknown methods with 405.",
    administrators="A client certificate of an authority in `trusted_client_ca`; with "
    "`enable_agent_mtls = false` everything is open to anyone.",
)
_NONCE = QueryField(
    "What the quote is to be about.", required=True, pattern=f"^[A-Za-z0-9]{{1,{MAX_NONCE}}}$"
)
_VERSION = Operation("The API versions of this agent.", AgentVersions)
_INFO = Operation("The agent's id and the algorithms of its keys (since 2.2).", AgentInfo)
_PUBLIC_KEY = Operation("The key that payloads are encrypted for.", PublicKeyReply)
_VERIFY_KEY = Operation(
    "Proves that the agent has the key of its payload.",
    KeyVerification,
    query={"challenge": QueryField("Letters and digits.", required=True, pattern="^[A-Za-z0-9]+$")},
)
_ADD_U = Operation("Takes the tenant's share of the payload's key, and the payload.", body=UKeyRequest)
_ADD_V = Operation("Takes the verifier's share of the payload's key.", body=VKeyRequest)
_IDENTITY = Operation(
    "A quote of PCR 16 alone, which holds the payload key.",
    QuoteReply,
    query={"nonce": _NONCE},
    refusals=(500,),
)
_INTEGRITY = Operation(
    "A quote of the PCRs that are asked for, with the logs that explain them.",
    QuoteReply,
    query={
        "nonce": _NONCE,
        "mask": QueryField(
            "PCRs 0 to 23, a bit for each, in hexadecimal.",
            required=True,
            pattern="^(0[xX])?0{0,2}[0-9a-fA-F]{1,6}$",
        ),
        "partial": QueryField("0: with `pubkey`; 1: without.", required=True, pattern="^[01]$"),
        "ima_ml_entry": QueryField("The first entry of the IMA list that is wanted, from 0."),
    },
    refusals=(500,),
)
_REVOCATION = Operation(
    "Takes a revocation, which is verified later: 200 says no more than that it is here.",
    body=SignedRevocation,
)


class Attestor(Protocol):
    """Makes quotes. Raises QuoteFailed."""

    async def identity(self, nonce: bytes, version: str, /) -> QuoteReply: ...

    async def integrity(self, query: IntegrityQuery, version: str, /) -> QuoteReply: ...


class Bootstrap(Protocol):
    """Takes the shares of a payload's key. Raises CredentialError."""

    def answer(self, challenge: str, /) -> str | None: ...

    def add_u(self, request: UKeyRequest, /) -> None: ...

    def add_v(self, request: VKeyRequest, /) -> None: ...


class AgentRoutes:
    """The handlers, with what they speak for."""

    def __init__(
        self,
        agent_id: str,
        pubkey_pem: str,
        algorithms: QuoteAlgorithms,
        ak_handle: int,
        attestor: Attestor,
        bootstrap: Bootstrap,
        revoked: Callable[[SignedRevocation], None],
    ) -> None:
        self._agent_id = agent_id
        self._pubkey_pem = pubkey_pem
        self._algorithms = algorithms
        self._ak_handle = ak_handle
        self._attestor = attestor
        self._bootstrap = bootstrap
        self._revoked = revoked

    def routes(self, *, mutual_tls: bool) -> list[Route]:
        """The route table. With mutual TLS every route wants a client certificate, which TLS has checked."""
        role = Role.ADMIN if mutual_tls else Role.ANONYMOUS
        table = [
            ("GET", "/version", self.version, _VERSION),
            ("GET", "/agent/info", self.info, _INFO),
            ("GET", "/keys/pubkey", self.public_key, _PUBLIC_KEY),
            ("GET", "/keys/verify", self.verify_key, _VERIFY_KEY),
            ("POST", "/keys/ukey", self.add_u, _ADD_U),
            ("POST", "/keys/vkey", self.add_v, _ADD_V),
            ("GET", "/quotes/identity", self.identity_quote, _IDENTITY),
            ("GET", "/quotes/integrity", self.integrity_quote, _INTEGRITY),
            ("POST", "/notifications/revocation", self.revocation, _REVOCATION),
        ]
        routes = [
            Route(
                method,
                path,
                role,
                handler,
                plain_http=not mutual_tls,
                versioned=path != "/version",
                about=about,
            )
            for method, path, handler, about in table
        ]
        return [*routes, openapi_route(AGENT_API, routes, role=role, plain_http=not mutual_tls)]

    async def version(self, _request: Request) -> Response:
        return Response(results=AgentVersions(AGENT_VERSIONS[-1], list(AGENT_VERSIONS)))

    async def info(self, request: Request) -> Response:
        return Response(
            results=AgentInfo(
                agent_uuid=self._agent_id,
                tpm_hash_alg=self._algorithms.bank.label,
                tpm_enc_alg=self._algorithms.encryption_for(request.version or ""),
                tpm_sign_alg=self._algorithms.signing,
                ak_handle=self._ak_handle,
            )
        )

    async def public_key(self, _request: Request) -> Response:
        return Response(results=PublicKeyReply(self._pubkey_pem))

    async def verify_key(self, request: Request) -> Response:
        tag = self._bootstrap.answer(parse_challenge(request.query))
        if tag is None:
            raise HttpError(400, "Bootstrap key not yet available.")
        return Response(results=KeyVerification(tag))

    async def add_u(self, request: Request) -> Response:
        body = request.json(UKeyRequest)
        try:
            self._bootstrap.add_u(body)
        except CredentialError as error:
            raise HttpError(400, str(error)) from error
        log.info("U key received from %s", request.caller.address)
        return Response()

    async def add_v(self, request: Request) -> Response:
        body = request.json(VKeyRequest)
        try:
            self._bootstrap.add_v(body)
        except CredentialError as error:
            raise HttpError(400, str(error)) from error
        log.info("V key received from %s", request.caller.address)
        return Response()

    async def identity_quote(self, request: Request) -> Response:
        nonce = parse_identity_query(request.query)
        try:
            return Response(results=await self._attestor.identity(nonce, request.version or ""))
        except QuoteFailed as error:
            log.error("identity quote failed: %s", error)
            raise HttpError(500, _NO_QUOTE) from error

    async def integrity_quote(self, request: Request) -> Response:
        query = parse_integrity_query(request.query)
        try:
            return Response(results=await self._attestor.integrity(query, request.version or ""))
        except QuoteFailed as error:
            log.error("integrity quote failed: %s", error)
            raise HttpError(500, _NO_QUOTE) from error

    async def revocation(self, request: Request) -> Response:
        # 200 means "queued", whatever the signature is worth.
        self._revoked(request.json(SignedRevocation))
        return Response()


def any_client(certificate: x509.Certificate | None) -> str | None:
    """Every client that TLS let in may use the whole API: who that is, the trusted CA decides.

    Except those whose certificate was made for another machine, or for a service.
    """
    try:
        if certificate is None or is_nodes(certificate) or is_services(certificate):
            return None
        return certificate.subject.rfc4514_string() or "client"
    except ValueError:
        return None


def unrouted(method: str, path: str) -> Response:
    """The answer where no route fits; its texts are what clients of the field compare or show."""
    match = _VERSIONED.fullmatch(path)
    if match is not None and match[1] not in AGENT_VERSIONS:
        # Verifiers look for exactly this phrase before they negotiate another version.
        return Response(400, status=f"{VERSION_NOT_SUPPORTED}: v{match[1]}")
    if method not in ("GET", "POST"):
        return Response(405, status="Method is not supported", headers={"Allow": "GET, POST"})
    if match is None:
        versions = ", ".join(f"/{version}" for version in AGENT_VERSIONS)
        return Response(400, status=f"Not Implemented: Use {versions} or /version interfaces")
    interface = (match[2] or "/").split("/")[1]
    return Response(400, status=_ADVICE.get((method, interface), _DEFAULT_ADVICE[method]))


_DEFAULT_ADVICE = {
    "GET": "Not Implemented: Use /agent, /keys, or /quotes interfaces",
    "POST": "Not Implemented: Use /keys or /notifications interfaces",
}
_ADVICE = {
    ("GET", "agent"): "URI not supported, only /info is supported for GET in /agent interface",
    ("GET", "keys"): "URI not supported, only /pubkey and /verify are supported for GET in /keys interface",
    ("POST", "keys"): "URI not supported, only /ukey and /vkey are supported for POST in /keys interface",
    ("GET", "quotes"): (
        "URI not supported, only /identity and /integrity are supported for GET in /quotes/ interface"
    ),
    ("POST", "notifications"): (
        "URI not supported, only /revocation is supported for POST in /notifications interface"
    ),
}
