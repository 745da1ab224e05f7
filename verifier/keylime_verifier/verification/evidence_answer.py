"""Body in, answer out: what `POST /verify/evidence` says of the evidence in a body."""

from keylime.http.exchange import HttpError, Response
from keylime.messages.envelope import parse_body
from keylime.messages.verification import (
    EvidenceFailure,
    EvidenceReply,
    EvidenceReply24,
    EvidenceRequest,
    TpmEvidence,
)
from keylime.steps import finish
from keylime_verifier.verification.evidence_check import (
    EvidenceJudgement,
    EvidenceRules,
    UnusableRequest,
    judge_evidence,
)


def answer_evidence(body: bytes, rules: EvidenceRules, *, is_typed: bool) -> Response:
    """The answer to `POST /verify/evidence`, 2.5 and later when `is_typed`.

    Raises HttpError and MalformedMessage for a body that cannot be read.
    """
    # Whoever sent it: memory and time are bounded here, and there may be policies with many files in it.
    evidence = _typed_evidence(body) if is_typed else parse_body(body, TpmEvidence, is_trusted=True)
    try:
        judgement = finish(judge_evidence(evidence, rules))
    except UnusableRequest as error:
        return Response(400, results=_reply(EvidenceJudgement((error.finding,)), is_typed=is_typed))
    return Response(results=_reply(judgement, is_typed=is_typed))


def _typed_evidence(encoded: bytes) -> TpmEvidence:
    body = parse_body(encoded, EvidenceRequest, is_trusted=True)
    if not body.type:
        raise HttpError(400, "missing parameter 'type'")
    if body.data is None:
        raise HttpError(400, "missing parameter 'data'")
    if body.type == "tee":
        raise HttpError(400, "invalid evidence type: this verifier knows 'tpm' only, not 'tee'")
    if body.type != "tpm":
        raise HttpError(400, "invalid evidence type: expected 'tpm'")
    return body.data


def _reply(judgement: EvidenceJudgement, *, is_typed: bool) -> EvidenceReply | EvidenceReply24:
    failures = [EvidenceFailure(finding.event_id, dict(finding.context)) for finding in judgement.findings]
    if not is_typed:
        return EvidenceReply24(int(not failures), failures)
    return EvidenceReply(valid=not failures, claims=judgement.claims, failures=failures)
