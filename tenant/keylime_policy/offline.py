"""The verdict on stored evidence: the verifier's appraisal where there is a quote, the logs alone otherwise.

Pure. What could not be checked without more evidence is part of the answer.
"""

import base64
import enum
import json
from dataclasses import dataclass, field, replace
from typing import assert_never

from keylime.appraisal.appraise import appraise
from keylime.appraisal.challenge import stored_evidence_challenge
from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.reference import AcceptedAlgorithms, Reference
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected
from keylime.errors import MalformedEvidence
from keylime.findings.finding import Finding
from keylime.hashes import HashAlgorithm
from keylime.ima import findings as ima_findings
from keylime.ima.appraisal import ImaResult, appraise_list
from keylime.ima.boot_aggregate import BootAggregates
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.keyrings import Keyring
from keylime.ima.measurement_list import BOOT_AGGREGATE, parse_line, split_lines
from keylime.ima.memo import EntryMemo
from keylime.ima.runtime_policy import EMPTY_POLICY, GENERATOR_LEGACY, RuntimePolicy, compile_runtime_policy
from keylime.ima.whole_entries import with_whole_entries
from keylime.measured_boot.appraisal import BootResult, appraise_boot_log
from keylime.measured_boot.boot_policy import (
    MeasuredBootPolicy,
    built_in_policies,
    compile_measured_boot_policy,
)
from keylime.measured_boot.os_measurements import OsMeasurements, replay_os
from keylime.measured_boot.pcr_sets import PcrSet
from keylime.measured_boot.replay import ParsedBootLog, UnreadableBootLog, parse_boot_log
from keylime.measured_boot.user_space_log import (
    UnreadableUserSpaceLog,
    UserSpaceLog,
    read_user_space_log,
)
from keylime.messages.agent import QuoteReply
from keylime.steps import finish
from keylime.tpm.pcr import MEASURED_BOOT_PCRS, PCR_COUNT, start_value
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_policy.log_facts import BootFacts, ImaFacts, boot_facts, ima_facts
from keylime_policy.stored_quote import StoredQuote

_COLUMNS = {  # by hex digits of the template hash
    2 * algorithm.size: algorithm
    for algorithm in (HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512)
}
_FIRMWARE_PCRS = frozenset(range(10))  # what boot_aggregate is a hash of


class Conclusion(enum.Enum):
    """What may be concluded."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvidence:
    """What is at hand; the IMA list in its ASCII form. `bank` is the one asked for, None for any."""

    ima_list: bytes | None = None
    boot_log: bytes | None = None
    os_log: bytes | None = None
    quote: StoredQuote | None = None
    bank: HashAlgorithm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What the evidence is held to; None for what nobody demands."""

    runtime_policy: RuntimePolicy | None = None
    measured_boot: MeasuredBootPolicy | None = None
    tpm_policy: TpmPolicy | None = None
    keyring: Keyring | None = None
    ignore_tomtou: bool = False
    explained: PcrSet = PcrSet.AUTOMATIC  # where there is no policy for measured boot


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineJudgement:
    """The answer: outcome with reasons, what to know besides, and what nobody looked at."""

    outcome: Conclusion
    findings: tuple[Finding, ...] = ()
    omitted: int = 0  # further findings of the same kind, of very many
    reason: str | None = None  # of an incomplete outcome
    notes: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    quoted: str | None = None  # the selection, as tpm2-tools write it
    ima: ImaFacts | None = None
    boot: BootFacts | None = None


@dataclass(slots=True)
class _Remarks:
    notes: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)


def judge(evidence: StoredEvidence, approval: Approval) -> OfflineJudgement:
    """The judgement on `evidence`. With a quote it is the verifier's; without, only the logs speak."""
    remarks = _Remarks()
    boot_log = None if evidence.boot_log is None else parse_boot_log(evidence.boot_log)
    if evidence.quote is None:
        judgement = _judge_logs(evidence, approval, boot_log, remarks)
    else:
        judgement = _judge_quote(
            evidence, evidence.quote, approval, remarks, reads_boot=isinstance(boot_log, ParsedBootLog)
        )
    content = None if evidence.quote is None else evidence.quote.content
    pcrs = None if content is None else content.pcrs
    return replace(
        judgement,
        notes=tuple(remarks.notes),
        not_checked=tuple(remarks.not_checked),
        quoted=None if pcrs is None else str(pcrs.selection),
        ima=None if evidence.ima_list is None else ima_facts(evidence.ima_list, evidence.bank, pcrs),
        boot=boot_facts(boot_log, _read_os_log(evidence)) if isinstance(boot_log, ParsedBootLog) else None,
    )


def _judge_quote(
    evidence: StoredEvidence,
    quote: StoredQuote,
    approval: Approval,
    remarks: _Remarks,
    *,
    reads_boot: bool,
) -> OfflineJudgement:
    bank = evidence.bank or quote.bank or HashAlgorithm.SHA256
    key = quote.key
    reference = Reference(
        attestation_key=key,
        accepted=AcceptedAlgorithms(
            hashes=frozenset(algorithm.label for algorithm in HashAlgorithm),
            encryption=frozenset({key.encryption_label}),
            signing=frozenset({key.scheme.label}),
        ),
        tpm_policy=approval.tpm_policy or TpmPolicy.from_wire("{}"),
        runtime_policy=_runtime_policy(
            evidence, approval, remarks, reads_boot=reads_boot and quote.indices >= _FIRMWARE_PCRS
        ),
        measured_boot=_measured_boot(evidence, quote, approval, remarks),
        tenant_keyring=approval.keyring,
        ignore_tomtou=approval.ignore_tomtou,
        evaluate_boot_always=True,
    )
    reply = QuoteReply(
        quote=quote.text,
        hash_alg=bank.label,
        enc_alg=key.encryption_label,
        sign_alg=key.scheme.label,
        ima_measurement_list=None if evidence.ima_list is None else evidence.ima_list.decode(),
        mb_measurement_list=(
            None if evidence.boot_log is None else base64.b64encode(evidence.boot_log).decode()
        ),
        os_measurement_list=None if evidence.os_log is None else base64.b64encode(evidence.os_log).decode(),
    )
    challenge = stored_evidence_challenge(reference, quote.indices, quote.nonce)
    verdict = appraise(reply, challenge, reference, Checkpoint.fresh())
    _remark_on_quote(quote, remarks)
    match verdict:
        case Accepted():
            remarks.notes.extend(verdict.notes)
            _remark_on_uncovered(evidence, reference, verdict.quote.ima_entries, remarks)
            return OfflineJudgement(outcome=Conclusion.ACCEPTED)
        case Rejected(findings, _, omitted):
            return OfflineJudgement(outcome=Conclusion.REJECTED, findings=findings, omitted=omitted)
        case Incomplete(reason):
            return OfflineJudgement(outcome=Conclusion.INCOMPLETE, reason=reason)
        case _:
            assert_never(verdict)


def _remark_on_quote(quote: StoredQuote, remarks: _Remarks) -> None:
    if not quote.has_attributes:
        remarks.not_checked.append(
            "the AK's attributes (restricted, fixedTPM and so on): a PEM file does not have them, "
            "give the TPM2B_PUBLIC"
        )
    remarks.not_checked.append("that the AK belongs to a genuine TPM: its EK certificate is not part of this")
    remarks.not_checked.append("the agent's payload key (PCR 16), and the order of several quotes")


def _remark_on_uncovered(
    evidence: StoredEvidence, reference: Reference, covered: int, remarks: _Remarks
) -> None:
    if evidence.ima_list is None or not reference.demands_ima:
        return
    more = len(split_lines(evidence.ima_list)) - covered
    if more:
        remarks.not_checked.append(f"the last {more} entries of the IMA list: the quote was made before them")


def _runtime_policy(
    evidence: StoredEvidence, approval: Approval, remarks: _Remarks, *, reads_boot: bool
) -> RuntimePolicy:
    """The policy to appraise with; for a list without a policy one that allows everything it can."""
    policy = approval.runtime_policy
    if policy is not None:
        if not policy.demands_ima and evidence.ima_list is not None:
            remarks.not_checked.append(
                "the IMA list: the runtime policy has no rules, and verifiers do not look at the list"
            )
        return policy
    if evidence.ima_list is None:
        return compile_runtime_policy(json.loads(EMPTY_POLICY))
    remarks.not_checked.append("which files, keys and buffers were measured: there is no runtime policy")
    return _permissive_policy(evidence.ima_list, judges_boot=reads_boot)


def _permissive_policy(ima_list: bytes, *, judges_boot: bool) -> RuntimePolicy:
    """Excludes everything, but for boot_aggregate where a boot log tells what that must be.

    Without one it is what the list says: quoted PCRs tell it only where no operating system extended them.
    """
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = GENERATOR_LEGACY
    if not judges_boot:
        document["digests"] = _stated_boot_aggregate(ima_list)
    document["excludes"] = ["(?!boot_aggregate$).*" if judges_boot else ".*"]
    document["ima"]["ignored_keyrings"] = ["*"]
    document["ima"]["log_hash_alg"] = _column_algorithm(ima_list).label
    return compile_runtime_policy(document)


def _stated_boot_aggregate(ima_list: bytes) -> dict[str, list[str]]:
    try:
        entry = parse_line(ima_list.partition(b"\n")[0])
    except MalformedEvidence:
        return {}
    # An MD5 digest is none that a TPM's bank could have, nor one that a policy may list.
    is_listable = entry.name == BOOT_AGGREGATE and len(entry.digest) >= HashAlgorithm.SHA1.size
    return {entry.name: [entry.digest.hex()]} if is_listable else {}


def _column_algorithm(ima_list: bytes) -> HashAlgorithm:
    """The algorithm of the template hashes, told by the length of the first."""
    column = ima_list.lstrip(b" \n")[:200].split(b" ", 2)[1:2]
    return _COLUMNS.get(len(column[0]), HashAlgorithm.SHA1) if column else HashAlgorithm.SHA1


def _measured_boot(
    evidence: StoredEvidence, quote: StoredQuote, approval: Approval, remarks: _Remarks
) -> MeasuredBootPolicy | None:
    """The policy for the boot log; for a log without a policy its replay alone, as far as the quote goes."""
    if approval.measured_boot is not None or evidence.boot_log is None:
        return approval.measured_boot
    if not quote.indices >= _FIRMWARE_PCRS:
        remarks.not_checked.append("the boot log: the quote does not cover PCR 0 to 9")
        return None
    remarks.not_checked.append("what the machine booted: there is no reference state for measured boot")
    return _replay_only(quote.indices, approval.explained)


def _replay_only(quoted: frozenset[int], explained: PcrSet) -> MeasuredBootPolicy:
    policy = compile_measured_boot_policy(
        "{}", policy_name="accept-all", registry=built_in_policies(), explained=explained
    )
    if policy is None:
        raise ValueError("the empty reference state must switch measured boot on")
    return replace(policy, required_pcrs=policy.required_pcrs & quoted)


def _read_os_log(evidence: StoredEvidence) -> UserSpaceLog | UnreadableUserSpaceLog | None:
    return read_user_space_log(evidence.os_log) if evidence.os_log else None


def _judge_logs(
    evidence: StoredEvidence,
    approval: Approval,
    boot_log: ParsedBootLog | UnreadableBootLog | None,
    remarks: _Remarks,
) -> OfflineJudgement:
    remarks.not_checked.append(
        "that a TPM vouches for these logs: there is no quote, so entries may be missing or made up"
    )
    boot = None
    if boot_log is not None:
        boot = _appraise_boot_alone(evidence, approval, boot_log, remarks)
    found = () if boot is None else boot.findings
    if evidence.ima_list is None:
        return _by_findings(found)
    reads_boot = isinstance(boot_log, ParsedBootLog)
    policy = _runtime_policy(evidence, approval, remarks, reads_boot=reads_boot)
    if not policy.demands_ima:
        return _by_findings(found)
    bank = evidence.bank or HashAlgorithm.SHA256
    ima = _appraise_list_alone(evidence.ima_list, bank, policy, approval, boot)
    tail = _unreadable_tail(evidence.ima_list, ima.entries)
    return _by_findings((*found, *ima.findings, *tail), omitted=ima.failures - len(ima.findings))


def _by_findings(findings: tuple[Finding, ...], *, omitted: int = 0) -> OfflineJudgement:
    outcome = Conclusion.REJECTED if findings else Conclusion.ACCEPTED
    return OfflineJudgement(outcome=outcome, findings=findings, omitted=omitted)


def _appraise_boot_alone(
    evidence: StoredEvidence,
    approval: Approval,
    log: ParsedBootLog | UnreadableBootLog,
    remarks: _Remarks,
) -> BootResult:
    """The logs held to their policy, with their own replay in the place of quoted PCRs."""
    policy = approval.measured_boot
    if policy is None:
        remarks.not_checked.append("what the machine booted: there is no reference state for measured boot")
        policy = _replay_only(MEASURED_BOOT_PCRS, approval.explained)
    replayed = log.pcrs if isinstance(log, ParsedBootLog) else {}
    bank = evidence.bank or next(iter(replayed), HashAlgorithm.SHA256)
    if evidence.bank is None and HashAlgorithm.SHA256 in replayed:
        bank = HashAlgorithm.SHA256
    firmware = replayed.get(bank) or {index: start_value(bank, index) for index in range(PCR_COUNT)}
    measurements = OsMeasurements(_read_os_log(evidence))
    result = appraise_boot_log(
        log if evidence.boot_log else None,
        bank=bank,
        quoted=replay_os(measurements.readable, bank, firmware),
        policy=policy,
        evaluate_content=True,
        measurements=measurements,
    )
    remarks.notes.extend(result.notes)
    return result


def _appraise_list_alone(
    ima_list: bytes,
    bank: HashAlgorithm,
    policy: RuntimePolicy,
    approval: Approval,
    boot: BootResult | None,
) -> ImaResult:
    """The list held to its policy, with the end of its own replay in the place of the quoted PCR 10."""
    aggregates = BootAggregates()
    if boot is not None:
        aggregates = BootAggregates(
            frozenset().union(*boot.boot_aggregates.values()),
            frozenset(bank.label for bank in boot.boot_aggregates),
        )
    memo = EntryMemo()

    def against(quoted: bytes) -> ImaResult:
        return finish(
            appraise_list(
                ima_list,
                bank=bank,
                quoted=quoted,
                stated_entry=0,
                policy=policy,
                tenant_keys=approval.keyring,
                boot_aggregates=aggregates,
                checkpoint=ImaCheckpoint.fresh(),
                ignore_tomtou=approval.ignore_tomtou,
                memo=memo,
            )
        )

    end = against(b"").replayed  # no PCR is empty, so this replay goes to the end
    return against(end or bytes(bank.size))


def _unreadable_tail(ima_list: bytes, covered: int) -> list[Finding]:
    """Lines after the last one that extends anything: none of them can be an entry."""
    found = []
    for index, line in enumerate(with_whole_entries(split_lines(ima_list))[covered:], covered):
        try:
            if line:
                parse_line(line)
        except MalformedEvidence as error:
            found.append(ima_findings.unparsable(index, str(error)))
    return found
