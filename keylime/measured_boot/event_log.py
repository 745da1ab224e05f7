"""Reads a firmware event log (`binary_bios_measurements`), crypto-agile or SHA-1 only.

The whole log is read or refused: a record that does not fit, a bank named twice or a digest of the wrong
size leaves nothing to trust in what follows. Only what fills up the area behind the last record is no part of
it. Whether the log is *true* is decided by its replay (`replay`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_types import EventType, event_type_name
from keylime.measured_boot.events import STARTUP_LOCALITIES, EventData, StartupLocality, decode_event_data
from keylime.measured_boot.reader import EventReader
from keylime.tpm.pcr import PCR_COUNT

# Real logs have some hundred events in some ten kilobytes; dbx is the largest of them.
MAX_LOG_SIZE = 4 * 1024 * 1024
MAX_EVENTS = 32_768

_EVENT_HEAD = 12  # bytes of PCR, type and number of digests; no event has only zeros or only ones in them
_SPEC_ID_SIGNATURE = b"Spec ID Event03\0"
_MAX_BANKS = 16

_NO_LOG = (
    "; give binary_bios_measurements as the kernel shows it, not what a tool made of it (base64, hex, YAML, "
    "JSON, a compressed file)"
)
_CC_TABLE = b"CCEL"  # the ACPI table that points to such a log
_FIRST_RTMR = 1
_RTMRS = frozenset(range(_FIRST_RTMR, 5))
_CC_LOG = (
    "CC event log (CCEL) of a confidential guest (Intel TDX), which explains the RTMRs of its own quotes "
    "and no PCR: hand in binary_bios_measurements of a TPM, for a guest that of its virtual TPM"
)


@dataclass(frozen=True, slots=True)
class SpecId:
    """The header of a crypto-agile log: versions, and the digest size of each TPM algorithm number."""

    platform_class: int
    version_minor: int
    version_major: int
    errata: int
    uintn_size: int
    digest_sizes: tuple[tuple[int, int], ...]
    vendor_info: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """One record. `type_code` and `data` are what the firmware says; only the digests are extended."""

    number: int
    pcr: int
    type_code: int
    digests: Mapping[HashAlgorithm, bytes]
    data: bytes
    decoded: EventData

    @property
    def type_name(self) -> str:
        """ "EV_SEPARATOR" and so on."""
        return event_type_name(self.type_code)

    @property
    def is_extended(self) -> bool:
        """Whether the digests went into a PCR."""
        return self.type_code != EventType.NO_ACTION


@dataclass(frozen=True, slots=True)
class EventLog:
    """All records in order. `spec_id` is None for a SHA-1 log; otherwise its record is the first of `events`.

    `algorithms` are the banks that every extended record has a digest for, as far as we know their names: a
    bank that some records lack, because it is switched off, cannot be replayed, and the others can.
    """

    events: tuple[Event, ...]
    algorithms: tuple[HashAlgorithm, ...]
    spec_id: SpecId | None

    @property
    def startup_locality(self) -> int:
        """The locality that started the TPM: as recorded, 4 after an H-CRTM measurement, else 0."""
        for event in self.events:
            if isinstance(event.decoded, StartupLocality):
                return event.decoded.locality
        has_hcrtm = any(
            event.type_code == EventType.EFI_HCRTM_EVENT and event.pcr == 0 for event in self.events
        )
        return 4 if has_hcrtm else 0


def parse_event_log(data: bytes) -> EventLog:
    """The log in `data`. Raises MalformedEvidence, which names the record."""
    if not data:
        raise MalformedEvidence("event log is empty")
    if data.startswith(_CC_TABLE):
        raise MalformedEvidence(_CC_LOG)
    if len(data) > MAX_LOG_SIZE:
        raise MalformedEvidence(f"event log of {len(data)} bytes, at most {MAX_LOG_SIZE} are read")
    reader = EventReader(data)
    first = _read_sha1_event(reader, 0)
    if first.type_code == EventType.NO_ACTION and first.data.startswith(_SPEC_ID_SIGNATURE):
        log = _read_crypto_agile(first, reader, _filler_start(data))
    else:
        log = _read_sha1_only(first, reader, _filler_start(data))
    if _is_cc_log(log):
        raise MalformedEvidence(_CC_LOG)
    _check_startup_locality(log)
    return log


def _is_cc_log(log: EventLog) -> bool:
    """Whether the log tells of a TDX guest's registers (UEFI 2.10, 38.4.1): 1 to 4, and one bank.

    Each firmware with a TPM measures into PCR 0 and 7.
    """
    registers = {event.pcr for event in log.events if event.is_extended}
    return bool(registers) and registers <= _RTMRS and log.algorithms == (HashAlgorithm.SHA384,)


def _read_crypto_agile(header: Event, reader: EventReader, filler: int) -> EventLog:
    spec_id = _parse_spec_id(header.data)
    if header.pcr == _FIRST_RTMR and [*dict(spec_id.digest_sizes)] == [HashAlgorithm.SHA384]:
        raise MalformedEvidence(_CC_LOG)
    if header.pcr != 0 or any(header.digests[HashAlgorithm.SHA1]):
        raise MalformedEvidence("event 0: the header must name PCR 0 and a digest of zeros")
    sizes = dict(spec_id.digest_sizes)
    events = [header]
    while not _is_over(reader, filler):
        events.append(_read_event(reader, _next_number(events), sizes))
    known = [HashAlgorithm(number) for number in sizes if number in _KNOWN_BANKS]
    extended = [event for event in events if event.is_extended]
    whole = tuple(bank for bank in known if all(bank in event.digests for event in extended))
    return EventLog(tuple(events), whole, spec_id)


def _read_sha1_only(first: Event, reader: EventReader, filler: int) -> EventLog:
    events = [first]
    while not _is_over(reader, filler):
        events.append(_read_sha1_event(reader, _next_number(events)))
    return EventLog(tuple(events), (HashAlgorithm.SHA1,), None)


def _filler_start(data: bytes) -> int:
    """Where the run of zeros, or of ones, begins that `data` end with: the last event may reach into it."""
    return min(len(data.rstrip(b"\0")), len(data.rstrip(b"\xff")))


def _is_over(reader: EventReader, filler: int) -> bool:
    """Whether no event follows: nothing does, or only what fills up the area that firmware writes into."""
    return not reader.remaining or (reader.offset >= filler and reader.remaining >= _EVENT_HEAD)


def _next_number(events: list[Event]) -> int:
    if len(events) >= MAX_EVENTS:
        raise MalformedEvidence(f"event log has more than {MAX_EVENTS} events")
    return len(events)


def _parse_spec_id(data: bytes) -> SpecId:
    reader = EventReader(data)
    reader.take(len(_SPEC_ID_SIGNATURE), "header signature")
    platform_class = reader.u32("platform class")
    minor, major, errata, uintn_size = (reader.u8("header version") for _ in range(4))
    if uintn_size not in {1, 2}:
        raise MalformedEvidence(f"event 0: size of UINTN is {uintn_size}, expected 1 or 2")
    count = reader.u32("number of algorithms")
    if not 1 <= count <= _MAX_BANKS:
        raise MalformedEvidence(f"event 0: {count} digest algorithms")
    sizes = tuple((reader.u16("algorithm"), reader.u16("digest size")) for _ in range(count))
    _check_banks(sizes)
    vendor_info = reader.take(reader.u8("vendor info size"), "vendor info")
    reader.expect_end("log header")
    return SpecId(platform_class, minor, major, errata, uintn_size, sizes, vendor_info)


def _check_banks(sizes: tuple[tuple[int, int], ...]) -> None:
    if len(dict(sizes)) != len(sizes):
        raise MalformedEvidence("event 0: a digest algorithm is named twice")
    for number, size in sizes:
        if number in _KNOWN_BANKS and size != HashAlgorithm(number).size:
            label = HashAlgorithm(number).label
            raise MalformedEvidence(f"event 0: {label} digests of {size} bytes")
        if size == 0:
            raise MalformedEvidence(f"event 0: digests of algorithm 0x{number:04x} are empty")


def _read_event(reader: EventReader, number: int, sizes: Mapping[int, int]) -> Event:
    where = f"event {number}"
    pcr, type_code, count = (reader.u32(where) for _ in range(3))
    if count > len(sizes):
        raise MalformedEvidence(f"{where}: {count} digests, the header names {len(sizes)}")
    raw: dict[int, bytes] = {}
    for _ in range(count):
        algorithm = reader.u16(where)
        if algorithm not in sizes or algorithm in raw:
            raise MalformedEvidence(f"{where}: digest of algorithm 0x{algorithm:04x} is unknown or repeated")
        raw[algorithm] = reader.take(sizes[algorithm], where)
    digests = {HashAlgorithm(number): digest for number, digest in raw.items() if number in _KNOWN_BANKS}
    return _make_event(reader, number, pcr, type_code, digests)


def _read_sha1_event(reader: EventReader, number: int) -> Event:
    where = f"event {number}"
    pcr, type_code = reader.u32(where), reader.u32(where)
    return _make_event(
        reader, number, pcr, type_code, {HashAlgorithm.SHA1: reader.take(HashAlgorithm.SHA1.size, where)}
    )


def _make_event(
    reader: EventReader, number: int, pcr: int, type_code: int, digests: Mapping[HashAlgorithm, bytes]
) -> Event:
    where = f"event {number}"
    # Records that are never extended may name no PCR at all (0xFFFFFFFF).
    if pcr >= PCR_COUNT and type_code != EventType.NO_ACTION:
        raise MalformedEvidence(f"{where}: there is no PCR {pcr}{'' if number else _NO_LOG}")
    data = reader.take(reader.u32(where), f"{where}: data")
    return Event(number, pcr, type_code, digests, data, decode_event_data(type_code, data))


def _check_startup_locality(log: EventLog) -> None:
    records = [event for event in log.events if isinstance(event.decoded, StartupLocality)]
    if len(records) > 1:
        raise MalformedEvidence(f"event {records[1].number}: a second startup locality")
    for event in records:
        if event.pcr != 0:
            raise MalformedEvidence(f"event {event.number}: startup locality in PCR {event.pcr}")
        if log.startup_locality not in STARTUP_LOCALITIES:
            raise MalformedEvidence(f"event {event.number}: startup locality {log.startup_locality}")


_KNOWN_BANKS = frozenset(int(algorithm) for algorithm in HashAlgorithm)
