"""The agent's REST API: routes, and the answers to requests that no route takes (rest-api 3.2, 1.5)."""

import logging
import re
from collections.abc import Callable

from cryptography import x509

from keylime.errors import CredentialError
from keylime.http.server import HttpError, Request, Response, Role, Route
from keylime.messages.agent import AgentInfo, KeyVerification, PublicKeyReply, UKeyRequest, VKeyRequest
from keylime.messages.revocation import SignedRevocation
from keylime.messages.versions import AGENT_VERSIONS, VERSION_NOT_SUPPORTED, AgentVersions
from keylime_agent.attestation import (
    Attestor,
    QuoteAlgorithms,
    QuoteFailed,
    parse_challenge,
    parse_identity_query,
    parse_integrity_query,
)
from keylime_agent.payload import Bootstrap

log = logging.getLogger(__name__)

_VERSIONED = re.compile(r"/v?(\d{1,3}\.\d{1,3})(/.*)?")


class AgentApi:
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
            ("GET", "/version", self.version),
            ("GET", "/agent/info", self.info),
            ("GET", "/keys/pubkey", self.public_key),
            ("GET", "/keys/verify", self.verify_key),
            ("POST", "/keys/ukey", self.add_u),
            ("POST", "/keys/vkey", self.add_v),
            ("GET", "/quotes/identity", self.identity_quote),
            ("GET", "/quotes/integrity", self.integrity_quote),
            ("POST", "/notifications/revocation", self.revocation),
        ]
        return [
            Route(method, path, role, handler, plain_http=not mutual_tls, versioned=path != "/version")
            for method, path, handler in table
        ]

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
            log.error("identity quote failed: %s", error.reason)
            raise

    async def integrity_quote(self, request: Request) -> Response:
        query = parse_integrity_query(request.query)
        try:
            return Response(results=await self._attestor.integrity(query, request.version or ""))
        except QuoteFailed as error:
            log.error("integrity quote failed: %s", error.reason)
            raise

    async def revocation(self, request: Request) -> Response:
        # 200 means "queued", whatever the signature is worth.
        self._revoked(request.json(SignedRevocation))
        return Response()


def any_client(certificate: x509.Certificate | None) -> str | None:
    """Every client that TLS let in may use the whole API: who that is, the trusted CA decides."""
    return None if certificate is None else certificate.subject.rfc4514_string() or "client"


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
