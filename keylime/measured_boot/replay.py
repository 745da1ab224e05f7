"""What the PCRs hold if an event log is true, which of them it separates, and what boot_aggregate may be."""

from collections.abc import Mapping
from dataclasses import dataclass

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_log import EventLog, parse_event_log
from keylime.measured_boot.events import SEPARATOR_SIZE, Separator
from keylime.tpm.pcr import PCR_COUNT, extend, start_value

# IMA hashes PCR 0-7 (SHA-1 bank, older kernels) or PCR 0-9 (all other banks since Linux 5.8).
BOOT_AGGREGATE_SIZES = (8, 10)
FIRMWARE_PCRS = frozenset(range(8))  # whose firmware part ends with a separator


@dataclass(frozen=True, slots=True)
class ParsedBootLog:
    """A log that could be read, with all that depends on its bytes alone: worth keeping while they stay.

    `separated` are the PCRs 0-7 that have a separator (`separated_pcrs`).
    """

    log: EventLog
    pcrs: Mapping[HashAlgorithm, Mapping[int, bytes]]
    boot_aggregates: Mapping[HashAlgorithm, frozenset[str]]
    separated: Mapping[HashAlgorithm, frozenset[int]]


@dataclass(frozen=True, slots=True)
class UnreadableBootLog:
    """Bytes that are not an event log, and why not."""

    reason: str


def parse_boot_log(data: bytes) -> ParsedBootLog | UnreadableBootLog:
    """The log in `data` read and replayed, or the reason why it cannot be. Raises nothing."""
    try:
        log = parse_event_log(data)
    except MalformedEvidence as error:
        return UnreadableBootLog(str(error))
    pcrs = replay_event_log(log)
    separated = {bank: separated_pcrs(log, bank) for bank in pcrs}
    return ParsedBootLog(log, pcrs, boot_aggregates(pcrs), separated)


def replay_event_log(log: EventLog) -> Mapping[HashAlgorithm, Mapping[int, bytes]]:
    """For each bank that we can compute, the value of every PCR 0-23; start values without events."""
    return {bank: _replay_bank(log, bank) for bank in log.algorithms if is_computable(bank)}


def separated_pcrs(log: EventLog, bank: HashAlgorithm) -> frozenset[int]:
    """The PCRs 0-7 whose digests in `bank` show that the firmware ended its measurements with a separator.

    The type is a remark; that the digest is the one of a separator's value is what was measured.
    """
    return frozenset(
        event.pcr
        for event in log.events
        if isinstance(event.decoded, Separator)
        and event.pcr in FIRMWARE_PCRS
        and event.digests.get(bank) in (bank.digest(event.data), bank.digest(event.data[:SEPARATOR_SIZE]))
    )


def boot_aggregates(
    pcrs: Mapping[HashAlgorithm, Mapping[int, bytes]],
) -> Mapping[HashAlgorithm, frozenset[str]]:
    """For each bank the digests (lower-case hex) that IMA may have put into its first entry."""
    return {
        bank: frozenset(boot_aggregate(bank, values, count) for count in BOOT_AGGREGATE_SIZES)
        for bank, values in pcrs.items()
    }


def boot_aggregate(bank: HashAlgorithm, values: Mapping[int, bytes], count: int) -> str:
    """The hash of PCR 0 to `count` - 1, lower-case hex."""
    return bank.digest(b"".join(values[index] for index in range(count))).hex()


def is_computable(bank: HashAlgorithm) -> bool:
    """Whether the crypto library has the bank's hash; SM3 is missing in many builds."""
    try:
        bank.digest(b"")
    except ValueError:
        return False
    return True


def _replay_bank(log: EventLog, bank: HashAlgorithm) -> Mapping[int, bytes]:
    values = {index: start_value(bank, index) for index in range(PCR_COUNT)}
    values[0] = log.startup_locality.to_bytes(bank.size, "big")
    for event in log.events:
        if event.is_extended:
            values[event.pcr] = extend(bank, values[event.pcr], event.digests[bank])
    return values
