"""Judges the logs of a boot against the quoted PCRs and a policy: the measured-boot part of an appraisal."""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from keylime.findings.finding import Finding
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.boot_policy import MeasuredBootPolicy
from keylime.measured_boot.machine_values import MachineValue
from keylime.measured_boot.os_measurements import (
    OsMeasurements,
    OsResult,
    explain_pcrs,
    likely_cause,
    replay_os,
)
from keylime.measured_boot.os_records import PHASE_PCR
from keylime.measured_boot.replay import (
    FIRMWARE_PCRS,
    ParsedBootLog,
    UnreadableBootLog,
    parse_boot_log,
)
from keylime.tpm.pcr import start_value

_NO_MEASUREMENTS = OsMeasurements()


@dataclass(frozen=True, slots=True)
class BootResult:
    """What the logs of a boot proved.

    `boot_aggregates` (lower-case hex for each bank) is empty without a readable log of the firmware, and
    `replayed` is where that log alone leads. `learned` are the values of the machine that are known now.
    """

    findings: tuple[Finding, ...]
    boot_aggregates: Mapping[HashAlgorithm, frozenset[str]] = field(default_factory=dict)
    replayed: Mapping[HashAlgorithm, Mapping[int, bytes]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    learned: tuple[MachineValue, ...] = ()


def appraise_boot_log(
    log: bytes | ParsedBootLog | UnreadableBootLog | None,
    *,
    bank: HashAlgorithm,
    quoted: Mapping[int, bytes],
    policy: MeasuredBootPolicy,
    evaluate_content: bool,
    measurements: OsMeasurements = _NO_MEASUREMENTS,
) -> BootResult:
    """Every finding about `log`: its replay in `bank`, and that of what the operating system measured after
    it, must give the `quoted` PCRs that `policy` needs.

    `quoted` are the PCR values of a verified quote. A caller that keeps results of `parse_boot_log` hands
    them in instead of the bytes; None and no bytes are no log. A log without separators is of no boot,
    whatever the policy. The content is judged when `evaluate_content` is set and nothing else was found.
    """
    missing = _missing_pcrs(policy, quoted)
    learned = measurements.learned
    if not log:  # a file without a byte is no log either
        return BootResult((*missing, *_unused_pcrs(policy, quoted)), learned=learned)
    if isinstance(log, bytes):
        log = parse_boot_log(log)
    if isinstance(log, UnreadableBootLog):
        return BootResult((_unreadable(log), *missing), learned=learned)
    replayed = log.pcrs.get(bank)
    if replayed is None:
        found = (_bank_not_in_log(bank, log), *missing)
        return BootResult(found, log.boot_aggregates, log.pcrs, learned=learned)
    compared = policy.required_pcrs & quoted.keys()
    system = explain_pcrs(measurements, bank=bank, compared=compared, firmware=replayed, quoted=quoted)
    has_stub = replayed[PHASE_PCR] != start_value(bank, PHASE_PCR)
    extended = {index for index, value in quoted.items() if value != start_value(bank, index)}
    excused = _excused(system, policy.if_logged & extended if has_stub else frozenset(), measurements)
    differing = tuple(index for index in system.unexplained if index not in excused)
    led_to = replay_os(measurements.readable, bank, replayed)
    findings = (
        *missing,
        *_no_boot(log, bank, compared),
        *_differences(bank, differing, led_to, quoted, measurements),
        *system.findings,
    )
    if evaluate_content and not findings:
        findings = policy.evaluate(log.log, bank)
    return BootResult(
        findings, log.boot_aggregates, log.pcrs, (*system.notes, *_notes(excused)), system.learned
    )


def _excused(system: OsResult, excusable: Set[int], measurements: OsMeasurements) -> tuple[int, ...]:
    """Of the unexplained PCRs those that need no explanation before the system's log has ever come.

    Only after a boot through systemd's stub, which measures a kernel image's sections into PCR 11, does
    systemd extend them; one that nobody has extended shows that the firmware's log is not true.
    """
    if measurements.log is not None or measurements.was_sent:
        return ()
    return tuple(index for index in system.unexplained if index in excusable)


def _notes(excused: Iterable[int]) -> Iterator[str]:
    for index in excused:
        yield (
            f"PCR {index} holds more than the boot log tells, and the agent sends no log of what the "
            "operating system measured: it is not judged"
        )


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
            explanation=f"There is no boot log, or an empty one, that would explain PCR {index}.",
            hint="check that the machine booted with UEFI and a TPM, that its firmware hands the log on, and "
            "that the agent may read binary_bios_measurements",
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
        hint="see what tpm2_eventlog says of binary_bios_measurements on the machine: if it reads the log, "
        "the agent sends another one; if not, update the firmware, or hold the machine to PCR values (a TPM "
        "policy) instead of measured boot",
    )


def _no_boot(log: ParsedBootLog, bank: HashAlgorithm, compared: frozenset[int]) -> tuple[Finding, ...]:
    """A finding where nothing shows that a firmware has measured and handed over: no separator in PCR 0-7."""
    separated = log.separated[bank]
    if compared & FIRMWARE_PCRS:
        separated &= compared  # the others are what somebody says
    if separated:
        return ()
    return (
        Finding(
            event_id="measured_boot.no_boot",
            context={"context": f"The boot log has no separator in PCR 0 to 7 of the {bank.label} bank"},
            recoverable=True,
            explanation="The boot log shows no boot: firmware ends what it measures into PCR 0 to 7 with "
            f"separators, and there is none in the {bank.label} bank.",
            hint="the firmware measures nothing, or not into this bank: switch that on in its settings, or "
            "let the agent quote another bank (tpm_hash_alg in agent.conf)",
        ),
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
    bank: HashAlgorithm,
    indices: tuple[int, ...],
    replayed: Mapping[int, bytes],
    quoted: Mapping[int, bytes],
    measurements: OsMeasurements,
) -> tuple[Finding, ...]:
    return tuple(
        _difference(bank, index, replayed[index].hex(), quoted[index].hex(), measurements)
        for index in indices
    )


def _difference(
    bank: HashAlgorithm, index: int, from_log: str, from_quote: str, measurements: OsMeasurements
) -> Finding:
    cause, remedy = likely_cause(index, measurements)
    return Finding(
        event_id=f"measured_boot.invalid_pcr_{index}",
        context={
            "context": f"{bank.label.upper()} boot event log PCR value does not match the quote",
            "got": from_log,
            "expected": from_quote,
        },
        recoverable=True,
        explanation=f"The boot log does not lead to the value that the TPM signed for PCR {index}: {cause}.",
        observed=from_log,
        expected=(from_quote,),
        hint=remedy,
    )
