"""The appraisal of one round: evidence and reference in, verdict out. Every finding is collected.

The order follows what each step may rely on: the quote's signature first, then what binds it to this boot and
this transport key, then the logs that explain its PCRs, then the values that the TPM policy pins.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from keylime.appraisal.challenge import Challenge
from keylime.appraisal.checkpoint import BootSession, Checkpoint
from keylime.appraisal.continuity import Continuity, judge_continuity
from keylime.appraisal.evidence import AgentAnswer, Evidence, parse_evidence, quote_finding
from keylime.appraisal.memo import AppraisalMemo
from keylime.appraisal.reference import Reference, canonical_algorithm
from keylime.appraisal.verdict import Accepted, AcceptedQuote, Incomplete, Rejected, Verdict
from keylime.errors import MalformedEvidence
from keylime.findings.finding import Finding
from keylime.hashes import HashAlgorithm
from keylime.ima import findings as ima_findings
from keylime.ima.appraisal import ImaResult, appraise_list
from keylime.ima.boot_aggregate import BootAggregates
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.measured_boot.appraisal import BootResult, appraise_boot_log
from keylime.measured_boot.os_measurements import OsMeasurements, explain_pcrs
from keylime.measured_boot.replay import BOOT_AGGREGATE_SIZES, ParsedBootLog, boot_aggregate
from keylime.messages.agent import QuoteReply
from keylime.steps import finish
from keylime.tpm.pcr import DATA_PCR, IMA_PCR, PcrSelection, PcrValues, data_pcr_value
from keylime.tpm.quote import QuoteRejected, VerifiedQuote, verify_quote

# A list that does not reach the quoted PCR 10 may once be a matter of timing; after that it is an answer.
MAX_INCOMPLETE_ROUNDS = 1

_HASHED_BY_KERNELS = {count: frozenset(range(count)) for count in BOOT_AGGREGATE_SIZES}


@dataclass(slots=True)
class _Round:
    """What one appraisal is about, and what it has gathered so far."""

    evidence: Evidence
    reference: Reference
    checkpoint: Checkpoint
    memo: AppraisalMemo
    findings: list[Finding] = field(default_factory=list)
    doubts: list[Finding] = field(default_factory=list)  # findings unless the agent has a new payload key
    notes: list[str] = field(default_factory=list)


def appraise(
    reply: QuoteReply,
    challenge: Challenge,
    reference: Reference,
    checkpoint: Checkpoint,
    memo: AppraisalMemo | None = None,
) -> Verdict:
    """The verdict on `reply`, computed in one go. See `appraise_stepwise`."""
    return finish(
        appraise_stepwise(AgentAnswer.of(reply), challenge, reference, checkpoint, memo or AppraisalMemo())
    )


def appraise_stepwise(
    answer: AgentAnswer,
    challenge: Challenge,
    reference: Reference,
    checkpoint: Checkpoint,
    memo: AppraisalMemo,
) -> Generator[None, None, Verdict]:
    """The verdict on `answer`; yields between slices of a long IMA list so that others may run.

    A function of its arguments alone: `memo` only remembers what would be computed again. Nothing that the
    evidence leaves out switches a check off: what must be there follows from `reference`.
    """
    evidence = parse_evidence(answer)
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
            challenge.qualifying_data,
            PcrSelection(evidence.bank, challenge.pcrs),
        )
    except QuoteRejected as error:
        finding = quote_finding("quote_validation", "Quote data validation", error=str(error))
        return _rejected([finding], checkpoint)

    this = _Round(evidence, reference, checkpoint, memo)
    public_key = _check_public_key(this, quote, challenge) if challenge.binds_key else None
    continuity = _check_continuity(this, quote)
    if _must_start_over(this, continuity):
        return _without_verdict(this, f"the machine {continuity.value}: the whole IMA list is needed")

    boot = _appraise_boot(this, quote.pcrs)
    ima = yield from _appraise_ima(this, quote.pcrs, continuity, boot)
    this.findings.extend(reference.tpm_policy.evaluate(quote.pcrs.values))
    if ima is not None and not ima.pcr_matched:
        if not this.findings and checkpoint.incomplete_rounds < MAX_INCOMPLETE_ROUNDS:
            return _without_verdict(this, "the IMA list does not reach the quoted PCR 10")
        if ima.replayed is not None:  # a refused start is not a mismatch as well
            this.findings.extend(_unreached(ima, ima.replayed, quote.pcrs, checkpoint.ima.next_entry))
    if this.findings:
        omitted = 0 if ima is None else ima.failures - len(ima.findings)
        return _rejected([*this.doubts, *this.findings], checkpoint, omitted=omitted)
    if this.doubts:
        reason = "PCR 16 does not vouch for the remembered public key: is there a new one?"
        return _without_verdict(this, reason)
    return Accepted(
        _advance(this, quote, continuity, public_key, ima, boot),
        _quote_facts(evidence, ima),
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
    elif encryption != reference.encryption_label:
        problems.append(
            ("invalid_enc_alg", f"the agent says {encryption}, its key is {reference.encryption_label}")
        )
    if signing not in accepted.signing:
        problems.append(("invalid_sign_alg", f"signature scheme {signing!r} is not accepted"))
    elif signing != key.scheme.label:
        problems.append(("invalid_sign_alg", f"the agent says {signing}, its key signs {key.scheme.label}"))
    return [quote_finding(event, text) for event, text in problems]


def _check_public_key(this: _Round, quote: VerifiedQuote, challenge: Challenge) -> str | None:
    """The payload key that PCR 16 of this quote vouches for.

    Some agents make a new key at every start. One that was not asked for its key, and sent none, may have
    done that since the last round: it is asked once.
    """
    public_key = this.evidence.public_key or this.checkpoint.public_key
    if public_key is None:
        this.findings.append(quote_finding("no_pubkey", "the agent sent no public key and none is known"))
        return None
    expected = data_pcr_value(quote.pcrs.bank, public_key)
    observed = quote.pcrs.values[DATA_PCR]
    if observed != expected:
        may_be_new = this.evidence.public_key is None and not challenge.wants_public_key
        (this.doubts if may_be_new else this.findings).append(
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


def _check_continuity(this: _Round, quote: VerifiedQuote) -> Continuity:
    """How this quote relates to the last accepted one; what speaks against it is noted."""
    result = judge_continuity(this.checkpoint.boot, quote.clock, this.evidence.boottime)
    this.findings.extend(result.findings)
    this.notes.extend(result.notes)
    before = this.checkpoint.firmware_version
    if before is not None and quote.firmware_version != before:
        this.notes.append(
            f"the TPM's firmware version changed from {before:#x} to {quote.firmware_version:#x}"
        )
    return result.continuity


def _must_start_over(this: _Round, continuity: Continuity) -> bool:
    """Whether the list at hand goes on from a boot that is over (Q25, I33, T10)."""
    another_boot = continuity in (Continuity.REBOOTED, Continuity.RESUMED)
    has_partial_list = this.evidence.ima_list is not None and this.evidence.ima_entry > 0
    return another_boot and this.reference.demands_ima and has_partial_list


def _appraise_boot(this: _Round, pcrs: PcrValues) -> BootResult | None:
    policy, log = this.reference.measured_boot, this.evidence.boot_log
    if policy is None:
        if log is not None:
            this.notes.append(
                "the agent sent a boot log; it is ignored, because no measured-boot policy is set"
            )
        return None
    evaluated = _evaluated_boot(this)
    has_changed = evaluated != this.checkpoint.evaluated_boot
    result = appraise_boot_log(
        None if log is None else this.memo.boot_log(log.content, log.digest),
        bank=pcrs.bank,
        quoted=pcrs.values,
        policy=policy,
        evaluate_content=has_changed or this.reference.evaluate_boot_always,
        measurements=_os_measurements(this),
    )
    this.findings.extend(result.findings)
    if has_changed or evaluated is None:
        this.notes.extend(result.notes)
    return result


def _os_measurements(this: _Round) -> OsMeasurements:
    log = this.evidence.os_log
    return OsMeasurements(
        None if log is None else this.memo.os_log(log.content, log.digest),
        this.checkpoint.machine_values,
        this.checkpoint.os_log_sent,
    )


def _evaluated_boot(this: _Round) -> str | None:
    """Names the logs of a boot, the bank whose digests were judged, and the policy that did it.

    Content is judged again when any of them changes: what one bank's digests say, the others need not.
    """
    policy, evidence = this.reference.measured_boot, this.evidence
    if policy is None or evidence.boot_log is None:
        return None
    name = f"{evidence.boot_log.digest} {evidence.bank.label} {policy.content_hash}"
    return name if evidence.os_log is None else f"{name} {evidence.os_log.digest}"


def _appraise_ima(
    this: _Round, pcrs: PcrValues, continuity: Continuity, boot: BootResult | None
) -> Generator[None, None, ImaResult | None]:
    if not this.reference.demands_ima:
        return None
    if this.evidence.ima_list is None:
        this.findings.append(
            Finding(
                f"pcr_validation.unused_pcr_{IMA_PCR}",
                {"message": "PCR 10 is quoted but there is no IMA measurement list"},
                recoverable=True,
                explanation="the agent sent no IMA list",
                hint="has the machine's kernel IMA, with a policy (ima_policy=tcb on its command line)? May "
                "the agent read ascii_runtime_measurements?",
            )
        )
        return None
    goes_on = continuity is Continuity.SAME_BOOT
    try:
        result = yield from appraise_list(
            this.evidence.ima_list,
            bank=pcrs.bank,
            quoted=pcrs.values[IMA_PCR],
            stated_entry=this.evidence.ima_entry,
            policy=this.reference.runtime_policy,
            tenant_keys=this.reference.tenant_keyring,
            boot_aggregates=_boot_aggregates(this, pcrs, boot),
            checkpoint=this.checkpoint.ima if goes_on else ImaCheckpoint.fresh(),
            ignore_tomtou=this.reference.ignore_tomtou,
            memo=this.memo.ima,
        )
    except MalformedEvidence as error:
        this.findings.append(
            quote_finding("invalid_data", "the agent's answer is not a quote", error=str(error))
        )
        return None
    this.findings.extend(result.findings)
    return result


def _boot_aggregates(this: _Round, pcrs: PcrValues, boot: BootResult | None) -> BootAggregates:
    """The boot_aggregate values that this boot may show.

    The kernel hashes PCR 0-7 or 0-9 of one bank before the operating system extends any of them: what counts
    is where the firmware's log leads, once both logs explain the quote. A kernel that was started by kexec
    hashes what the PCRs hold by then. Without such a log only the quoted PCRs tell something, which is what
    the kernel saw unless the operating system has extended them since.
    """
    if boot is None:
        replayed = _replayed_without_policy(this, pcrs)
    else:
        replayed = None if boot.findings else boot.boot_aggregates
    now = frozenset(
        boot_aggregate(pcrs.bank, pcrs.values, count)
        for count, hashed in _HASHED_BY_KERNELS.items()
        if hashed <= pcrs.values.keys()
    )
    if replayed is None:
        return BootAggregates(now)
    names = frozenset(bank.label.replace("_", "-") for bank in replayed)  # sm3_256 is sm3-256 to IMA
    return BootAggregates(frozenset().union(*replayed.values()), names, after_kexec=now)


def _replayed_without_policy(this: _Round, pcrs: PcrValues) -> Mapping[HashAlgorithm, frozenset[str]] | None:
    """What a boot log tells that nobody demands, if it explains all quoted PCRs that the kernel hashes."""
    log = this.evidence.boot_log
    hashed = _HASHED_BY_KERNELS[max(BOOT_AGGREGATE_SIZES)]
    if log is None or not hashed <= pcrs.values.keys():
        return None
    parsed = this.memo.boot_log(log.content, log.digest)
    firmware = parsed.pcrs.get(pcrs.bank) if isinstance(parsed, ParsedBootLog) else None
    if not isinstance(parsed, ParsedBootLog) or firmware is None:
        return None
    result = explain_pcrs(
        _os_measurements(this), bank=pcrs.bank, compared=hashed, firmware=firmware, quoted=pcrs.values
    )
    return None if result.unexplained or result.findings else parsed.boot_aggregates


def _unreached(ima: ImaResult, replay: bytes, pcrs: PcrValues, asked: int) -> Iterator[Finding]:
    """Why a list that no prefix of replays to PCR 10 is not accepted."""
    if not any(pcrs.values[IMA_PCR]):
        yield ima_findings.nothing_measured(ima.uncovered)
        return
    if ima.late_start is not None:
        yield ima_findings.begins_in_the_middle(ima.late_start, asked)
    replayed, observed = replay.hex(), pcrs.values[IMA_PCR].hex()
    yield Finding(
        "ima.pcr_mismatch",
        {"message": "the IMA list does not reach PCR 10", "got": replayed, "expected": observed},
        recoverable=True,
        explanation="the IMA measurement list does not replay to the quoted PCR 10: "
        "entries are missing, altered or added",
        observed=replayed,
        expected=(observed,),
    )


def _rejected(findings: list[Finding], checkpoint: Checkpoint, *, omitted: int = 0) -> Rejected:
    restarted = msgspec.structs.replace(checkpoint.restarted(), incomplete_rounds=0)
    return Rejected(tuple(findings), restarted, omitted)


def _without_verdict(this: _Round, reason: str) -> Verdict:
    """No verdict yet, unless something else already speaks against the machine or this happened too often."""
    if this.findings:
        return _rejected([*this.doubts, *this.findings], this.checkpoint)
    if this.checkpoint.incomplete_rounds >= MAX_INCOMPLETE_ROUNDS:
        finding = quote_finding("quote_validation", f"no verdict twice in a row: {reason}")
        return _rejected([finding], this.checkpoint)
    again = msgspec.structs.replace(
        this.checkpoint.restarted(),
        incomplete_rounds=this.checkpoint.incomplete_rounds + 1,
        # A key in doubt is forgotten, so the next challenge asks for it and an answer without one fails.
        public_key=None if this.doubts else this.checkpoint.public_key,
    )
    return Incomplete(reason, again)


def _advance(
    this: _Round,
    quote: VerifiedQuote,
    continuity: Continuity,
    public_key: str | None,
    ima: ImaResult | None,
    boot: BootResult | None,
) -> Checkpoint:
    clock, before = quote.clock, this.checkpoint
    return Checkpoint(
        boot=BootSession(clock.reset_count, clock.restart_count, clock.clock, this.evidence.boottime),
        ima=before.ima if ima is None else ima.checkpoint,
        ima_policy=this.reference.runtime_policy.content_hash,
        public_key=public_key,
        evaluated_boot=_evaluated_boot(this),
        incomplete_rounds=0,
        reboots=before.reboots + (continuity is Continuity.REBOOTED),
        firmware_version=quote.firmware_version,
        os_log_sent=before.os_log_sent or (boot is not None and this.evidence.os_log is not None),
        machine_values=before.machine_values if boot is None else boot.learned,
    )


def _quote_facts(evidence: Evidence, ima: ImaResult | None) -> AcceptedQuote:
    return AcceptedQuote(
        hash_alg=evidence.bank.label,
        encryption_alg=evidence.declared_encryption,
        signing_alg=evidence.declared_signing,
        ima_entries=0 if ima is None else ima.entries,
        ima_violations=0 if ima is None else ima.violations,
        ima_excluded=0 if ima is None else ima.excluded,
    )
