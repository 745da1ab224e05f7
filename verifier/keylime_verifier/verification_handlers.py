"""`/verify`: evidence that anyone brings along, judged once. Bounded, since nobody has to say who he is."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TypeVar

from keylime.appraisal.findings import Finding
from keylime.errors import KeylimeError, MalformedMessage
from keylime.http.server import HttpError, Request, Response, Role, Route
from keylime.identifiers import AgentId, parse_agent_id
from keylime.messages.verification import (
    EvidenceFailure,
    EvidenceReply,
    EvidenceReply24,
    EvidenceRequest,
    IdentityReply,
    TpmEvidence,
)
from keylime.messages.versions import version_key
from keylime_verifier.evidence_check import EvidenceRules, UnusableRequest, judge_evidence, judge_identity
from keylime_verifier.references import decode_attestation_key

FindAttestationKey = Callable[[AgentId], Awaitable[str | None]]

ResultT = TypeVar("ResultT")

MAX_EVIDENCE = 32 << 20  # bytes: a list of 100,000 files with a policy for them
_MAX_WAITING = 16
_TYPED_SINCE = (2, 5)


class VerificationHandlers:
    """One-shot verification, for anyone."""

    def __init__(self, find_attestation_key: FindAttestationKey, rules: EvidenceRules) -> None:
        self._find_attestation_key = find_attestation_key
        self._rules = rules
        self._turn = asyncio.Lock()  # one at a time: polling goes first
        self._waiting = 0

    def routes(self) -> list[Route]:
        """The routes under `/verify`."""
        anyone = Role.ANONYMOUS
        return [
            Route("GET", "/verify/identity", anyone, self.verify_identity),
            Route("POST", "/verify/evidence", anyone, self.verify_evidence, max_body=MAX_EVIDENCE),
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
            key = None if ak_tpm is None else decode_attestation_key(ak_tpm)
        except KeylimeError as error:  # our record, not the caller's fault
            raise HttpError(500) from error
        reason = judge_identity(quote, nonce, hash_alg, key)
        return Response(results=IdentityReply(1) if reason is None else IdentityReply(0, reason))

    async def verify_evidence(self, request: Request) -> Response:
        is_typed = (version_key(request.version or "") or (0, 0)) >= _TYPED_SINCE
        evidence = _typed_evidence(request) if is_typed else request.json(TpmEvidence)
        try:
            findings = await self._judge(evidence)
        except UnusableRequest as error:
            return Response(400, results=_reply(TpmEvidence(), [error.finding], is_typed=is_typed))
        return Response(results=_reply(evidence, findings, is_typed=is_typed))

    async def _judge(self, evidence: TpmEvidence) -> tuple[Finding, ...]:
        if self._waiting >= _MAX_WAITING:
            raise HttpError(503, "Too many verifications are waiting, try again later", retry_after_s=5)
        self._waiting += 1
        try:
            async with self._turn:
                return await _in_thread(lambda: judge_evidence(evidence, self._rules))
        finally:
            self._waiting -= 1


def _query(request: Request, name: str) -> str:
    value = request.query.get(name)
    if not value:
        raise HttpError(400, f"missing query parameter '{name}'")
    return value


def _typed_evidence(request: Request) -> TpmEvidence:
    body = request.json(EvidenceRequest)
    if not body.type:
        raise HttpError(400, "missing parameter 'type'")
    if body.data is None:
        raise HttpError(400, "missing parameter 'data'")
    if body.type == "tee":
        raise HttpError(400, "invalid evidence type: this verifier knows 'tpm' only, not 'tee'")
    if body.type != "tpm":
        raise HttpError(400, "invalid evidence type: expected 'tpm'")
    return body.data


def _reply(
    evidence: TpmEvidence, findings: Sequence[Finding], *, is_typed: bool
) -> EvidenceReply | EvidenceReply24:
    failures = [EvidenceFailure(finding.event_id, dict(finding.context)) for finding in findings]
    if not is_typed:
        return EvidenceReply24(int(not failures), failures)
    # Exactly the fields that were judged: what nobody looked at is not claimed.
    claims = TpmEvidence() if failures else evidence
    return EvidenceReply(valid=not failures, claims=claims, failures=failures)


async def _in_thread(begin: Callable[[], Generator[None, None, ResultT]]) -> ResultT:
    """The result of the steps that `begin` starts, taken in a thread; it soon ends when the caller does."""
    given_up = threading.Event()

    def run() -> ResultT:
        steps = begin()
        while not given_up.is_set():
            try:
                next(steps)
            except StopIteration as end:
                result: ResultT = end.value
                return result
        raise MalformedMessage("given up")

    try:
        return await asyncio.to_thread(run)
    finally:
        given_up.set()
