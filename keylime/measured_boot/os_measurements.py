"""Explains PCRs by the firmware's log and, after it, by what the operating system says that it measured.

A quote may be a moment older than the log: of the records of a PCR, the fewest that lead to the quoted value
count, and the rest were made later. Without a log one record can be known all the same: `os-separator`, whose
digest is a constant.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from keylime.findings.finding import Finding, printable
from keylime.hashes import HashAlgorithm
from keylime.measured_boot import machine_values, os_records
from keylime.measured_boot.machine_values import ChangedValue, MachineValue
from keylime.measured_boot.os_records import MACHINE_PCR, PHASE_PCR, SEPARATED_PCRS, RecordFault
from keylime.measured_boot.pcr_sets import HOW_TO_LEAVE_OUT
from keylime.measured_boot.user_space_log import UnreadableUserSpaceLog, UserSpaceLog, UserSpaceRecord
from keylime.tpm.pcr import MEASURED_BOOT_PCRS, extend, start_value

LOG_PATH = "/run/log/systemd/tpm2-measure.log"
# What systemd extends with more than the constant, in its versions so far.
EXTENDED_PCRS = frozenset({9, PHASE_PCR, 12, MACHINE_PCR})
_MAX_SHOWN = 16  # faults of one PCR
_ANYBODY = "the log is incomplete or altered, or something extended the PCR without a record"


@dataclass(frozen=True, slots=True)
class OsMeasurements:
    """What an agent sent about its operating system, and what is known from before.

    `log` is None where there is none, or an empty one: machines without a measured boot have none.
    `was_sent` is whether the agent has sent one before.
    """

    log: UserSpaceLog | UnreadableUserSpaceLog | None = None
    learned: tuple[MachineValue, ...] = ()
    was_sent: bool = False

    @property
    def readable(self) -> UserSpaceLog | None:
        """The log, if there is one that could be read."""
        return self.log if isinstance(self.log, UserSpaceLog) else None


@dataclass(frozen=True, slots=True)
class Explanation:
    """How the quoted value of a PCR came about after the firmware's part: the records that it covers.

    `separated` is whether os-separator was inferred; `later` are records that the quote does not cover.
    """

    covered: tuple[UserSpaceRecord, ...] = ()
    later: tuple[UserSpaceRecord, ...] = ()
    separated: bool = False


@dataclass(frozen=True, slots=True)
class OsResult:
    """What was explained, what was not, what speaks against the records; `notes` are for a log."""

    explained: Mapping[int, Explanation] = field(default_factory=dict)
    unexplained: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    learned: tuple[MachineValue, ...] = ()


def explain_pcr(
    index: int, bank: HashAlgorithm, firmware: bytes, quoted: bytes, log: UserSpaceLog | None
) -> Explanation | None:
    """How `quoted` follows from `firmware`, to which the firmware's log leads; None if it does not."""
    records = () if log is None else log.of_pcr(index, bank)
    value = firmware
    if value == quoted:
        return Explanation(later=records)
    for count, record in enumerate(records, 1):
        value = extend(bank, value, record.digests[bank])
        if value == quoted:
            return Explanation(records[:count], records[count:])
    if log is None and index in SEPARATED_PCRS:
        separated = extend(bank, firmware, os_records.digest_of_separator(bank))
        return Explanation(separated=True) if separated == quoted else None
    return None


def explain_pcrs(
    measurements: OsMeasurements,
    *,
    bank: HashAlgorithm,
    compared: frozenset[int],
    firmware: Mapping[int, bytes],
    quoted: Mapping[int, bytes],
) -> OsResult:
    """All `compared` PCRs explained, and the records that were needed judged."""
    log = measurements.readable
    explained: dict[int, Explanation] = {}
    for index in sorted(compared):
        explanation = explain_pcr(index, bank, firmware[index], quoted[index], log)
        if explanation is not None:
            explained[index] = explanation
    findings: list[Finding] = []
    if isinstance(measurements.log, UnreadableUserSpaceLog):
        findings.append(_unreadable(measurements.log))
    if log is None:
        learned, changes = _judge_values(measurements, UserSpaceLog(()), explained, bank)
        findings.extend(map(_changed, changes))
        return OsResult(explained, _missing(compared, explained), tuple(findings), (), learned)
    findings.extend(_boot_ids(log))
    for index in sorted(compared):
        is_begun = firmware[index] != start_value(bank, index)
        faults = list(os_records.judge_records(index, log.of_pcr(index, bank), is_begun=is_begun))
        findings.extend(_faulty(index, fault) for fault in faults[:_MAX_SHOWN])
    findings.extend(_unseparated(log, bank, compared, explained))
    learned, changes = _judge_values(measurements, log, explained, bank)
    findings.extend(map(_changed, changes))
    return OsResult(
        explained, _missing(compared, explained), tuple(findings), tuple(_notes(log, explained)), learned
    )


def replay_os(
    log: UserSpaceLog | None, bank: HashAlgorithm, firmware: Mapping[int, bytes]
) -> Mapping[int, bytes]:
    """What PCRs hold after the firmware's part and all records."""
    values = dict(firmware)
    for record in () if log is None else log.records:
        if record.pcr is not None and bank in record.digests:
            values[record.pcr] = extend(bank, values[record.pcr], record.digests[bank])
    return values


def likely_cause(index: int, measurements: OsMeasurements) -> tuple[str, str | None]:
    """Why no log leads to the value of PCR `index`, most likely, and what to do."""
    leave_out = f"if PCR {index} may change without a record, {HOW_TO_LEAVE_OUT}"
    log = measurements.log
    if isinstance(log, UserSpaceLog):
        cut = "; its end is missing" if log.is_cut else ""
        return (
            f"nor does the operating system's log{cut}. A log is altered; or something else than systemd "
            "extended the PCR, systemd died before it could write its record, or the machine runs a kernel "
            "that was started by kexec or woke from hibernation",
            f"reboot; {leave_out}",
        )
    if log is not None:
        return "and the operating system's log cannot be read", leave_out
    if measurements.was_sent:
        return (
            f"and the operating system's log ({LOG_PATH}), which the agent has sent before, did not come",
            f"see that the agent starts as root, and can read {LOG_PATH}; {leave_out}",
        )
    if index in EXTENDED_PCRS or index in SEPARATED_PCRS:
        return (
            f"{_ANYBODY}. Systemd does that on machines with a unified kernel image, and the agent sent no "
            "log of it",
            f"let an agent of this version run there, started as root: it sends {LOG_PATH}; {leave_out}",
        )
    return _ANYBODY, leave_out


def _missing(compared: frozenset[int], explained: Mapping[int, Explanation]) -> tuple[int, ...]:
    return tuple(sorted(compared - explained.keys()))


def _judge_values(
    measurements: OsMeasurements,
    log: UserSpaceLog,
    explained: Mapping[int, Explanation],
    bank: HashAlgorithm,
) -> tuple[tuple[MachineValue, ...], list[ChangedValue]]:
    covered = sorted(
        (record for explanation in explained.values() for record in explanation.covered),
        key=lambda record: record.number,
    )
    seen = list(machine_values.machine_values(covered, log))
    changes = machine_values.compare_values(
        measurements.learned, seen, bank=bank, compared=frozenset(explained)
    )
    return machine_values.learn_values(measurements.learned, seen), list(changes)


def _unreadable(log: UnreadableUserSpaceLog) -> Finding:
    message = f"The operating system's log of measurements cannot be read: {printable(log.reason)}"
    return Finding(
        "measured_boot.parser.os_log.error",
        {"message": message},
        recoverable=True,
        explanation=f"{message}. It was damaged or forged, or is written in another form than systemd's.",
        hint=f"look at {LOG_PATH} on the machine",
    )


def _boot_ids(log: UserSpaceLog) -> Iterator[Finding]:
    first = next((record.boot_id for record in log.records if record.boot_id), "")
    other = next((record for record in log.records if record.boot_id not in ("", first)), None)
    if other is not None:
        fault = RecordFault(other, "it is of another boot than those before it", is_forged=True)
        yield _faulty(other.pcr, fault)


def _faulty(index: int | None, fault: RecordFault) -> Finding:
    text, where = printable(fault.record.text), "an NV index" if index is None else f"PCR {index}"
    said = f"record {fault.record.number} of the operating system's log ({where}, {text!r})"
    if fault.is_forged:
        event_id, hint = "measured_boot.os.forged_record", "somebody has changed the log: look at the machine"
    else:
        event_id = "measured_boot.os.unexpected_record"
        hint = f"find out what extended {where}; if that is meant to be, {HOW_TO_LEAVE_OUT}"
    return Finding(
        event_id,
        {"message": f"{said}: {fault.reason}", "pcr": index},
        recoverable=True,
        explanation=f"{said} cannot be right: {fault.reason}.",
        log_index=fault.record.number,
        observed=text,
        hint=hint,
    )


def _unseparated(
    log: UserSpaceLog,
    bank: HashAlgorithm,
    compared: frozenset[int],
    explained: Mapping[int, Explanation],
) -> Iterator[Finding]:
    """Where some PCRs have os-separator, all that systemd separates have it; it is never a later record."""
    marked = {index for index in SEPARATED_PCRS if os_records.is_separated(log.of_pcr(index, bank))}
    for index in sorted(compared & SEPARATED_PCRS & explained.keys()) if marked else ():
        if not os_records.is_separated(explained[index].covered):
            yield Finding(
                "measured_boot.os.missing_separator",
                {"message": f"PCR {index} has no os-separator, and others have", "pcr": index},
                recoverable=True,
                explanation=f"PCR {index} has no os-separator, and others have: with it systemd ends what "
                "firmware and boot loaders measure, in all of them at once. The operating system's log is "
                "altered, or the boot was.",
                hint=f"reboot; {HOW_TO_LEAVE_OUT}",
            )


def _changed(change: ChangedValue) -> Finding:
    name = printable(change.name)
    if change.observed is None:
        event_id, what = "measured_boot.os.missing_value", f"the {name} was not measured in this boot"
    else:
        event_id, what = "measured_boot.os.changed_value", f"the {name} is not what it was"
    return Finding(
        event_id,
        {"message": what, "got": change.observed, "expected": change.expected},
        recoverable=True,
        explanation=f"{what.capitalize()} when the operating system's log first told it: is this the same "
        "machine, with the same disks?"
        if change.observed is not None
        else f"{what.capitalize()}, as it was before: is this the same machine, with the same disks?",
        log_index=None if change.record is None else change.record.number,
        observed=None if change.observed is None else printable(change.observed),
        expected=(printable(change.expected),),
        hint="if it was changed on purpose, let it be learned anew: keylime_tenant -c reactivate",
    )


def _notes(log: UserSpaceLog, explained: Mapping[int, Explanation]) -> Iterator[str]:
    if log.is_cut:
        yield "the last record of the operating system's log is not whole"
    others = {record.pcr for record in log.records if record.pcr is not None} - MEASURED_BOOT_PCRS
    if others:
        names = ", ".join(map(str, sorted(others)))
        yield f"the operating system's log has records of PCR {names}, which no boot is judged by"
    for index, explanation in explained.items():
        if explanation.later:
            yield (
                f"PCR {index}: {_count(explanation.later)} of the operating system's log "
                f"({_words(explanation.later)}) later than the quote, or not of this boot"
            )
        unknown = os_records.unknown_kinds(index, explanation.covered)
        if unknown:
            yield f"PCR {index}: {_count(unknown)} of a kind that is not known ({_words(unknown)})"


def _count(records: Sequence[UserSpaceRecord]) -> str:
    return "1 record" if len(records) == 1 else f"{len(records)} records"


def _words(records: Sequence[UserSpaceRecord]) -> str:
    shown = ", ".join(printable(record.text[:80]) for record in records[:4])
    return shown if len(records) <= 4 else f"{shown}, ..."
