"""Evidence at hand, judged as a polled agent's would be. Pure; no agent, database or network is involved."""

import base64
import binascii
from collections.abc import Generator
from dataclasses import dataclass

from keylime.appraisal.appraise import MAX_INCOMPLETE_ROUNDS, appraise_stepwise
from keylime.appraisal.challenge import stored_evidence_challenge
from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.evidence import AgentAnswer, quote_finding
from keylime.appraisal.memo import AppraisalMemo
from keylime.appraisal.reference import AcceptedAlgorithms, Reference
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected
from keylime.documents.dsse import open_envelope
from keylime.errors import KeylimeError, MalformedEvidence, MalformedMessage, PolicyError, UnsuitableKey
from keylime.findings.finding import Finding
from keylime.hashes import HashAlgorithm
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy, parse_runtime_policy
from keylime.measured_boot.boot_policy import MeasuredBootPolicy
from keylime.messages.agent import QuoteReply
from keylime.messages.verification import TpmEvidence
from keylime.tpm.keys import AttestationKey, parse_endorsement_key
from keylime.tpm.quote import parse_quote
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_verifier.policies.demands import CompileBootPolicy, decode_attestation_key
from keylime_verifier.verification.evidence_claims import proven_claims

_REQUIRED = ("quote", "nonce", "hash_alg", "tpm_ek", "tpm_ak")
_NOTHING_PROVEN = TpmEvidence()


@dataclass(frozen=True, slots=True)
class EvidenceRules:
    """What the verifier's configuration says about every appraisal."""

    compile_boot_policy: CompileBootPolicy
    ignore_tomtou: bool = False


class UnusableRequest(KeylimeError):
    """A request that lacks something or cannot be read: not a verdict about a machine. Answered with 400."""

    def __init__(self, event: str, message: str) -> None:
        super().__init__(message)
        self.finding = Finding(
            f"default.{event}", {"message": message}, recoverable=False, explanation=message
        )


@dataclass(frozen=True, slots=True)
class EvidenceJudgement:
    """What speaks against evidence or, when nothing does, what it proves."""

    findings: tuple[Finding, ...]
    claims: TpmEvidence = _NOTHING_PROVEN


def judge_evidence(evidence: TpmEvidence, rules: EvidenceRules) -> Generator[None, None, EvidenceJudgement]:
    """The judgement on `evidence`; yields between slices of a long IMA list.

    The appraisal is that of polling with all policies given (T13), except that no transport key is bound and
    no earlier round is known. Raises UnusableRequest, which names the field.
    """
    _demand_parameters(evidence)
    _check_endorsement_key(evidence)
    try:
        key = decode_attestation_key(evidence.tpm_ak or "")
    except MalformedMessage as error:
        raise UnusableRequest("invalid_param", "tpm_ak is not base64") from error
    except (MalformedEvidence, UnsuitableKey) as error:
        return EvidenceJudgement(
            (quote_finding("quote_validation", "tpm_ak is no attestation key", error=str(error)),)
        )
    reference = _reference(evidence, key, rules)
    reply = QuoteReply(
        quote=evidence.quote or "",
        hash_alg=evidence.hash_alg or "",
        enc_alg=key.encryption_label,
        sign_alg=key.scheme.label,
        ima_measurement_list=evidence.ima_measurement_list or None,
        mb_measurement_list=evidence.mb_log or None,
        os_measurement_list=evidence.os_log or None,
    )
    challenge = stored_evidence_challenge(reference, _quoted_pcrs(reply.quote), evidence.nonce or "")
    # There will be no second round: a list that does not reach PCR 10 is an answer.
    only_round = Checkpoint(incomplete_rounds=MAX_INCOMPLETE_ROUNDS)
    verdict = yield from appraise_stepwise(
        AgentAnswer.of(reply), challenge, reference, only_round, AppraisalMemo()
    )
    match verdict:
        case Accepted(_, facts):
            return EvidenceJudgement((), proven_claims(evidence, reference, facts.ima_entries))
        case Rejected(findings):
            return EvidenceJudgement(findings)
        case Incomplete(reason):
            return EvidenceJudgement((quote_finding("quote_validation", reason),))


def _demand_parameters(evidence: TpmEvidence) -> None:
    for name in _REQUIRED:
        if not getattr(evidence, name):
            raise UnusableRequest("missing_param", f'missing parameter "{name}"')
    if not (evidence.tpm_policy or evidence.runtime_policy or evidence.mb_policy):
        message = 'missing policy: expected one of "tpm_policy", "runtime_policy", "mb_policy"'
        raise UnusableRequest("missing_policy", message)


def _check_endorsement_key(evidence: TpmEvidence) -> None:
    try:
        parse_endorsement_key(base64.b64decode(evidence.tpm_ek or "", validate=True))
    except (binascii.Error, ValueError) as error:
        raise UnusableRequest("invalid_param", "tpm_ek is not base64") from error
    except (MalformedEvidence, UnsuitableKey) as error:
        raise UnusableRequest("invalid_param", f"tpm_ek is no endorsement key: {error}") from error


def _reference(evidence: TpmEvidence, key: AttestationKey, rules: EvidenceRules) -> Reference:
    """What the evidence is held to; which algorithms are good enough is the caller's choice."""
    runtime, boot = _runtime_policy(evidence), _boot_policy(evidence, rules)
    try:
        tpm_policy = TpmPolicy.from_client(evidence.tpm_policy or "{}")
    except PolicyError as error:
        raise UnusableRequest("invalid_param", str(error)) from error
    return Reference(
        attestation_key=key,
        accepted=AcceptedAlgorithms(
            hashes=frozenset(algorithm.label for algorithm in HashAlgorithm),
            encryption=frozenset({key.encryption_label}),
            signing=frozenset({key.scheme.label}),
        ),
        tpm_policy=tpm_policy,
        runtime_policy=runtime,
        measured_boot=boot,
        ignore_tomtou=rules.ignore_tomtou,
        evaluate_boot_always=True,
    )


def _runtime_policy(evidence: TpmEvidence) -> RuntimePolicy:
    if not evidence.runtime_policy:
        return parse_runtime_policy(EMPTY_POLICY)
    try:
        return parse_runtime_policy(open_envelope(evidence.runtime_policy))
    except PolicyError as error:
        raise UnusableRequest("invalid_param", f"runtime_policy: {error}") from error


def _boot_policy(evidence: TpmEvidence, rules: EvidenceRules) -> MeasuredBootPolicy | None:
    if not evidence.mb_policy:
        return None
    try:
        policy = rules.compile_boot_policy(evidence.mb_policy)
    except PolicyError as error:
        raise UnusableRequest("invalid_param", f"mb_policy: {error}") from error
    if policy is None and not (evidence.tpm_policy or evidence.runtime_policy):
        raise UnusableRequest("missing_policy", "missing policy: mb_policy is null, and there is no other")
    return policy


def _quoted_pcrs(quote: str) -> frozenset[int]:
    """The PCRs that there are values of; of a malformed quote, about which the appraisal speaks, none."""
    try:
        return frozenset(parse_quote(quote).pcrs.values)
    except MalformedEvidence:
        return frozenset()
