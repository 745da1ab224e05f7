"""`/verify`: evidence that anyone brings along, judged once. Bounded, since nobody has to say who he is."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from keylime.errors import KeylimeError
from keylime.http.exchange import Caller, HttpError, Request, Response, Role
from keylime.http.operation import Operation, QueryField
from keylime.http.routing import Route
from keylime.identifiers import AgentId, parse_agent_id
from keylime.messages.verification import EvidenceReply, EvidenceRequest, IdentityReply
from keylime.messages.versions import version_key
from keylime_verifier.verification.identity_check import judge_identity
from keylime_verifier.verification.refusals import NotJudged

FindAttestationKey = Callable[[AgentId], Awaitable[str | None]]

_TYPED_SINCE = (2, 5)
_RETRY_AFTER_S = 5.0


class Judges(Protocol):
    """Who judges evidence, at a cost that polling does not notice. Raises NotJudged."""

    def admit(self, caller: Caller) -> None: ...

    async def answer(self, caller: Caller, body: bytes, *, is_typed: bool) -> Response: ...


class VerificationHandlers:
    """One-shot verification, for anyone."""

    def __init__(self, find_attestation_key: FindAttestationKey, judges: Judges, max_evidence: int) -> None:
        """`max_evidence` is in bytes."""
        self._find_attestation_key = find_attestation_key
        self._judges = judges
        self._max_evidence = max_evidence

    def routes(self) -> list[Route]:
        """The routes under `/verify`."""
        anyone = Role.ANONYMOUS
        return [
            Route(
                "GET",
                "/verify/identity",
                anyone,
                self.verify_identity,
                about=Operation(
                    "Whether a quote is one of an agent for a nonce.",
                    IdentityReply,
                    query={
                        "agent_uuid": QueryField("The agent's id.", required=True),
                        "quote": QueryField("The agent's identity quote.", required=True),
                        "nonce": QueryField("What the quote was asked for with.", required=True),
                        "hash_alg": QueryField("The hash of the quote's PCRs.", required=True),
                    },
                    refusals=(404,),
                ),
            ),
            Route(
                "POST",
                "/verify/evidence",
                anyone,
                self.verify_evidence,
                max_body=self._max_evidence,
                admit=self._admit,
                about=Operation(
                    "Judges evidence at hand.", EvidenceReply, body=EvidenceRequest, refusals=(413,)
                ),
            ),
        ]

    async def verify_identity(self, request: Request) -> Response:
        uuid, quote, nonce, hash_alg = (
            _query(request, name) for name in ("agent_uuid", "quote", "nonce", "hash_alg")
        )
        agent_id = parse_agent_id(uuid)
        ak_tpm = await self._find_attestation_key(agent_id)
        if ak_tpm is None and request.caller.role is Role.ADMIN:
            raise HttpError(404, "agent id not found")
        try:
            reason = judge_identity(quote, nonce, hash_alg, ak_tpm)
        except KeylimeError as error:  # our record, not the caller's fault
            raise HttpError(500) from error
        return Response(results=IdentityReply(1) if reason is None else IdentityReply(0, reason))

    async def verify_evidence(self, request: Request) -> Response:
        is_typed = (version_key(request.version or "") or (0, 0)) >= _TYPED_SINCE
        caller, body = request.caller, request.body
        del request  # what waits for its turn keeps the body once
        answering = self._judges.answer(caller, body, is_typed=is_typed)
        del body
        try:
            return await answering
        except NotJudged as error:
            raise _later(error) from error

    def _admit(self, caller: Caller) -> None:
        try:
            self._judges.admit(caller)
        except NotJudged as error:
            raise _later(error) from error


def _later(error: NotJudged) -> HttpError:
    return HttpError(503, str(error) or None, retry_after_s=_RETRY_AFTER_S)


def _query(request: Request, name: str) -> str:
    value = request.query.get(name)
    if not value:
        raise HttpError(400, f"missing query parameter '{name}'")
    return value
