"""The appraisal of one round: evidence and reference in, verdict out. Every finding is collected.

The order follows what each step may rely on: the quote's signature first, then what binds it to this boot and
this transport key, then the logs that explain its PCRs, then the PCRs that no log explains.
"""

from collections.abc import Generator
from dataclasses import dataclass, field

import msgspec

from keylime.appraisal.challenge import Challenge
from keylime.appraisal.checkpoint import BootSession, Checkpoint
from keylime.appraisal.continuity import Continuity, ContinuityResult, judge_continuity
from keylime.appraisal.evidence import Evidence, parse_evidence, quote_finding
from keylime.appraisal.findings import Finding
from keylime.appraisal.memo import AppraisalMemo
from keylime.appraisal.reference import Reference, canonical_algorithm
from keylime.appraisal.verdict import Accepted, AcceptedQuote, Incomplete, Rejected, Verdict
from keylime.ima.appraisal import ImaResult, appraise_list
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.measured_boot.appraisal import BootResult, appraise_boot_log
from keylime.messages.agent import QuoteReply
from keylime.tpm.pcr import DATA_PCR, IMA_PCR, PcrSelection, PcrValues, data_pcr_value
from keylime.tpm.quote import QuoteRejected, VerifiedQuote, verify_quote

# A list that does not reach the quoted PCR 10 may once be a matter of timing; after that it is an answer.
MAX_INCOMPLETE_ROUNDS = 1


@dataclass(slots=True)
class _Round:
    """What one appraisal has gathered so far."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    consumed: set[int] = field(default_factory=set)  # PCRs that a log or a key has explained


def appraise(
    reply: QuoteReply,
    challenge: Challenge,
    reference: Reference,
    checkpoint: Checkpoint,
    memo: AppraisalMemo | None = None,
) -> Verdict:
    """The verdict on `reply`, computed in one go. See `appraise_stepwise`."""
    steps = appraise_stepwise(reply, challenge, reference, checkpoint, memo or AppraisalMemo())
    while True:
        try:
            next(steps)
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict


def appraise_stepwise(
    reply: QuoteReply,
    challenge: Challenge,
    reference: Reference,
    checkpoint: Checkpoint,
    memo: AppraisalMemo,
) -> Generator[None, None, Verdict]:
    """The verdict on `reply`; yields between slices of a long IMA list so that others may run.

    A function of its arguments alone: `memo` only remembers what would be computed again. Nothing that the
    evidence leaves out switches a check off: what must be there follows from `reference`.
    """
    evidence = parse_evidence(reply)
    if isinstance(evidence, Finding):
        return _rejected([evidence], checkpoint)
    if not challenge.pcrs >= reference.demanded_pcrs - {DATA_PCR}:
        raise ValueError("the challenge asks for less than the policies demand")
    refused = _unaccepted_algorithms(evidence, reference)
    if refused:
        return _rejected(refused, checkpoint)
    try:
        quote = verify_quote(
            evidence.quote,
            reference.attestation_key,
            challenge.nonce.encode(),
            PcrSelection(evidence.bank, challenge.pcrs),
        )
    except QuoteRejected as error:
        finding = quote_finding("quote_validation", "Quote data validation", error=str(error))
        return _rejected([finding], checkpoint)

    this = _Round()
    public_key = _check_public_key(evidence, quote, checkpoint, this) if challenge.binds_key else None
    continuity = judge_continuity(checkpoint.boot, quote.clock, evidence.boottime)
    this.findings.extend(continuity.findings)
    this.notes.extend(continuity.notes)
    if quote.firmware_version != checkpoint.firmware_version and checkpoint.firmware_version is not None:
        this.notes.append(f"the TPM's firmware version changed to {quote.firmware_version:#x}")
    if _must_start_over(continuity, evidence, reference):
        reason = f"the machine {continuity.continuity.value}: the whole IMA list is needed"
        return _without_verdict(reason, this, checkpoint)

    boot = _appraise_boot(evidence, quote.pcrs, reference, checkpoint, memo, this)
    ima = yield from _appraise_ima(evidence, quote.pcrs, reference, checkpoint, continuity, boot, memo, this)
    this.findings.extend(reference.tpm_policy.evaluate(quote.pcrs.values, frozenset(this.consumed)))

    if ima is not None and not ima.pcr_matched:
        if not this.findings and checkpoint.incomplete_rounds < MAX_INCOMPLETE_ROUNDS:
            return _without_verdict("the IMA list does not reach the quoted PCR 10", this, checkpoint)
        this.findings.append(_pcr_mismatch(ima, quote.pcrs))
    if this.findings:
        return _rejected(this.findings, checkpoint)
    return Accepted(
        _advance(checkpoint, evidence, quote, continuity, public_key, ima, boot),
        _quote_facts(evidence, reference, ima),
        tuple(this.notes),
    )


def _unaccepted_algorithms(evidence: Evidence, reference: Reference) -> list[Finding]:
    """Structures decide what was used, the operator's lists what may be; what the agent says must agree."""
    key, accepted = reference.attestation_key, reference.accepted
    problems = [
        ("invalid_hash_alg", f"hash algorithm {algorithm.label} is not accepted")
        for algorithm in {evidence.bank, evidence.quote.signature.hash_algorithm}
        if not reference.accepts_hash(algorithm)
    ]
    encryption, signing = canonical_algorithm(evidence.declared_encryption), evidence.declared_signing
    if encryption not in accepted.encryption:
        problems.append(("invalid_enc_alg", f"key algorithm {encryption!r} is not accepted"))
    elif encryption != key.encryption_label:
        problems.append(
            ("invalid_enc_alg", f"the agent says {encryption}, its key is {key.encryption_label}")
        )
    if signing not in accepted.signing:
        problems.append(("invalid_sign_alg", f"signature scheme {signing!r} is not accepted"))
    elif signing != key.scheme.label:
        problems.append(("invalid_sign_alg", f"the agent says {signing}, its key signs {key.scheme.label}"))
    return [quote_finding(event, text) for event, text in problems]


def _check_public_key(
    evidence: Evidence, quote: VerifiedQuote, checkpoint: Checkpoint, this: _Round
) -> str | None:
    """The payload key that PCR 16 of this quote vouches for."""
    public_key = evidence.public_key or checkpoint.public_key
    if public_key is None:
        this.findings.append(quote_finding("no_pubkey", "the agent sent no public key and none is known"))
        return None
    this.consumed.add(DATA_PCR)
    expected = data_pcr_value(quote.pcrs.bank, public_key)
    observed = quote.pcrs.values[DATA_PCR]
    if observed != expected:
        this.findings.append(
            Finding(
                f"pcr_validation.invalid_pcr_{DATA_PCR}",
                {"got": observed.hex(), "expected": expected.hex()},
                recoverable=True,
                explanation="PCR 16 does not vouch for the agent's public key",
                observed=observed.hex(),
                expected=(expected.hex(),),
            )
        )
    return public_key


def _must_start_over(continuity: ContinuityResult, evidence: Evidence, reference: Reference) -> bool:
    """Whether the list at hand goes on from a boot that is over (Q25, I33, T10)."""
    another_boot = continuity.continuity in (Continuity.REBOOTED, Continuity.RESUMED)
    return another_boot and reference.demands_ima and evidence.ima_list is not None and evidence.ima_entry > 0


def _appraise_boot(
    evidence: Evidence,
    pcrs: PcrValues,
    reference: Reference,
    checkpoint: Checkpoint,
    memo: AppraisalMemo,
    this: _Round,
) -> BootResult | None:
    if reference.measured_boot is None:
        if evidence.boot_log is not None:
            this.notes.append(
                "the agent sent a boot log; it is ignored, because no measured-boot policy is set"
            )
        return None
    log, digest = evidence.boot_log, evidence.boot_log_digest
    changed = digest != checkpoint.boot_log_digest
    result = appraise_boot_log(
        None if log is None or digest is None else memo.boot_log(log, digest),
        bank=pcrs.bank,
        quoted=pcrs.values,
        policy=reference.measured_boot,
        evaluate_content=changed or reference.evaluate_boot_always,
    )
    this.findings.extend(result.findings)
    this.consumed.update(result.consumed)
    return result


def _appraise_ima(
    evidence: Evidence,
    pcrs: PcrValues,
    reference: Reference,
    checkpoint: Checkpoint,
    continuity: ContinuityResult,
    boot: BootResult | None,
    memo: AppraisalMemo,
    this: _Round,
) -> Generator[None, None, ImaResult | None]:
    if not reference.demands_ima:
        return None
    this.consumed.add(IMA_PCR)
    if evidence.ima_list is None:
        this.findings.append(
            Finding(
                f"pcr_validation.unused_pcr_{IMA_PCR}",
                {"message": "PCR 10 is quoted but there is no IMA measurement list"},
                recoverable=True,
                explanation="the agent sent no IMA measurement list: is IMA enabled, and may the agent read it?",
            )
        )
        return None
    same_boot = continuity.continuity is Continuity.SAME_BOOT
    result = yield from appraise_list(
        evidence.ima_list,
        bank=pcrs.bank,
        quoted=pcrs.values[IMA_PCR],
        stated_entry=evidence.ima_entry,
        policy=reference.runtime_policy,
        tenant_keys=reference.tenant_keyring,
        boot_aggregates=_boot_aggregates(pcrs, boot),
        checkpoint=checkpoint.ima if same_boot else ImaCheckpoint.fresh(),
        ignore_tomtou=reference.ignore_tomtou,
        memo=memo.ima,
    )
    this.findings.extend(result.findings)
    return result


def _boot_aggregates(pcrs: PcrValues, boot: BootResult | None) -> frozenset[str] | None:
    """The boot_aggregate values that this boot may show, from the quoted PCRs where they suffice.

    The kernel hashes PCR 0-7 or 0-9 of one bank. Other banks than the quoted one are known only from the
    replayed log, which counts when it agreed with the quote.
    """
    candidates: set[str] = set()
    for count in (8, 10):
        if all(index in pcrs.values for index in range(count)):
            candidates.add(pcrs.bank.digest(b"".join(pcrs.values[index] for index in range(count))).hex())
    if boot is not None and boot.boot_aggregates is not None and not boot.findings:
        for values in boot.boot_aggregates.values():
            candidates.update(values)
    return frozenset(candidates) or None


def _pcr_mismatch(ima: ImaResult, pcrs: PcrValues) -> Finding:
    replayed = "" if ima.replayed is None else ima.replayed.hex()
    observed = pcrs.values[IMA_PCR].hex()
    return Finding(
        "ima.pcr_mismatch",
        {"message": "the IMA list does not reach PCR 10", "got": replayed, "expected": observed},
        recoverable=True,
        explanation="the IMA measurement list does not replay to the quoted PCR 10: "
        "entries are missing, altered or added",
        observed=replayed,
        expected=(observed,),
    )


def _rejected(findings: list[Finding], checkpoint: Checkpoint) -> Rejected:
    restarted = msgspec.structs.replace(checkpoint.restarted(), incomplete_rounds=0)
    return Rejected(tuple(findings), restarted)


def _without_verdict(reason: str, this: _Round, checkpoint: Checkpoint) -> Verdict:
    """No verdict yet, unless something else already speaks against the machine or this happened too often."""
    if this.findings:
        return _rejected(this.findings, checkpoint)
    if checkpoint.incomplete_rounds >= MAX_INCOMPLETE_ROUNDS:
        finding = quote_finding("quote_validation", f"no verdict twice in a row: {reason}")
        return _rejected([finding], checkpoint)
    rounds = checkpoint.incomplete_rounds + 1
    return Incomplete(reason, msgspec.structs.replace(checkpoint.restarted(), incomplete_rounds=rounds))


def _advance(
    checkpoint: Checkpoint,
    evidence: Evidence,
    quote: VerifiedQuote,
    continuity: ContinuityResult,
    public_key: str | None,
    ima: ImaResult | None,
    boot: BootResult | None,
) -> Checkpoint:
    clock = quote.clock
    return Checkpoint(
        boot=BootSession(clock.reset_count, clock.restart_count, clock.clock, evidence.boottime),
        ima=checkpoint.ima if ima is None else ima.checkpoint,
        public_key=public_key,
        boot_log_digest=checkpoint.boot_log_digest if boot is None else evidence.boot_log_digest,
        incomplete_rounds=0,
        reboots=checkpoint.reboots + (continuity.continuity is Continuity.REBOOTED),
        firmware_version=quote.firmware_version,
    )


def _quote_facts(evidence: Evidence, reference: Reference, ima: ImaResult | None) -> AcceptedQuote:
    return AcceptedQuote(
        hash_alg=evidence.bank.label,
        encryption_alg=evidence.declared_encryption,
        signing_alg=evidence.declared_signing,
        ima_entries=0 if ima is None else ima.entries,
        ima_violations=0 if ima is None else ima.violations,
        ima_excluded=0 if ima is None else ima.excluded,
    )
