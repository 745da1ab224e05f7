"""Judges a boot log against the quoted PCRs and a policy: the measured-boot part of an appraisal."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from keylime.appraisal.findings import Finding
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.replay import ParsedBootLog, UnreadableBootLog, parse_boot_log
from keylime.policy.measured_boot import MeasuredBootPolicy


@dataclass(frozen=True, slots=True)
class BootResult:
    """What a boot log proved.

    `boot_aggregates` (lower-case hex for each bank) is empty without a readable log; `consumed` are the PCRs
    that were compared with the log, whether they agreed or not.
    """

    findings: tuple[Finding, ...]
    boot_aggregates: Mapping[HashAlgorithm, frozenset[str]] = field(default_factory=dict)
    replayed: Mapping[HashAlgorithm, Mapping[int, bytes]] = field(default_factory=dict)
    consumed: frozenset[int] = frozenset()


def appraise_boot_log(
    log: bytes | ParsedBootLog | UnreadableBootLog | None,
    *,
    bank: HashAlgorithm,
    quoted: Mapping[int, bytes],
    policy: MeasuredBootPolicy,
    evaluate_content: bool,
) -> BootResult:
    """Every finding about `log`: its replay in `bank` must give the `quoted` PCRs that `policy` needs.

    `quoted` are the PCR values of a verified quote. A caller that keeps results of `parse_boot_log` hands
    them in instead of the bytes. The content is judged when `evaluate_content` is set and the PCRs gave no
    finding.
    """
    if isinstance(log, bytes):
        log = parse_boot_log(log)
    missing = _missing_pcrs(policy, quoted)
    if log is None:
        return BootResult((*missing, *_unused_pcrs(policy, quoted)))
    if isinstance(log, UnreadableBootLog):
        return BootResult((_unreadable(log), *missing))
    replayed = log.pcrs.get(bank)
    if replayed is None:
        return BootResult((_bank_not_in_log(bank, log), *missing), log.boot_aggregates, log.pcrs)
    compared = policy.required_pcrs & quoted.keys()
    findings = (*missing, *_differences(bank, compared, replayed, quoted))
    if evaluate_content and not findings:
        findings = policy.evaluate(log.log, bank)
    return BootResult(findings, log.boot_aggregates, log.pcrs, compared)


def _missing_pcrs(policy: MeasuredBootPolicy, quoted: Mapping[int, bytes]) -> tuple[Finding, ...]:
    missing = sorted(policy.required_pcrs - quoted.keys())
    if not missing:
        return ()
    text = ", ".join(str(index) for index in missing)
    return (
        Finding(
            event_id="measured_boot.missing_pcrs",
            context={"context": "PCRs that the measured-boot policy needs are not quoted", "data": missing},
            recoverable=True,
            explanation=f"The quote does not cover PCR {text}: nothing shows that the boot log is true.",
        ),
    )


def _unused_pcrs(policy: MeasuredBootPolicy, quoted: Mapping[int, bytes]) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            event_id=f"pcr_validation.unused_pcr_{index}",
            context={"message": f"PCR {index} is quoted for measured boot, but the agent sent no boot log"},
            recoverable=True,
            explanation="The agent sent no boot log although its policy demands measured boot.",
            hint="check that the machine booted with UEFI and a TPM, and that the agent may read "
            "binary_bios_measurements",
            observed=quoted[index].hex(),
        )
        for index in sorted(policy.required_pcrs & quoted.keys())
    )


def _unreadable(log: UnreadableBootLog) -> Finding:
    return Finding(
        event_id="measured_boot.parser.tpm2_eventlog.error",  # the id that severity rules in the field name
        context={"message": f"The boot log cannot be read: {log.reason}"},
        recoverable=True,
        explanation=f"The boot log cannot be read: {log.reason}. It was damaged or forged, or the firmware "
        "writes it in another form than the TCG defines.",
    )


def _bank_not_in_log(bank: HashAlgorithm, log: ParsedBootLog) -> Finding:
    banks = tuple(known.label for known in log.pcrs)
    return Finding(
        event_id="measured_boot.parser.invalid_pcrs_hashes",
        context={
            "message": f"The boot log has no {bank.label} digests",
            "got": list(banks),
            "expected": bank.label,
        },
        recoverable=True,
        explanation=f"The quote covers the {bank.label} bank, but the firmware wrote digests of "
        f"{', '.join(banks) or 'no known algorithm'} only.",
        hint="let the agent quote a bank that the firmware uses (tpm_hash_alg in agent.conf)",
        observed=", ".join(banks),
        expected=(bank.label,),
    )


def _differences(
    bank: HashAlgorithm, compared: frozenset[int], replayed: Mapping[int, bytes], quoted: Mapping[int, bytes]
) -> tuple[Finding, ...]:
    return tuple(
        _difference(bank, index, replayed[index].hex(), quoted[index].hex())
        for index in sorted(compared)
        if replayed[index] != quoted[index]
    )


def _difference(bank: HashAlgorithm, index: int, from_log: str, from_quote: str) -> Finding:
    return Finding(
        event_id=f"measured_boot.invalid_pcr_{index}",
        context={
            "context": f"{bank.label.upper()} boot event log PCR value does not match the quote",
            "got": from_log,
            "expected": from_quote,
        },
        recoverable=True,
        explanation=f"The boot log does not lead to the value that the TPM signed for PCR {index}: "
        "the log is incomplete or altered, or something extended the PCR without a record.",
        observed=from_log,
        expected=(from_quote,),
    )
