"""Which records an operating system's log may hold: words that their digests prove, where, and in what order.

The grammar is systemd's (docs/reference/policies-and-logs.md, section 9.5). What it does not know yet is
passed where the operating system may add to a PCR, and refused where only firmware and boot loaders may.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.replay import is_computable
from keylime.measured_boot.user_space_log import UserSpaceRecord

OS_SEPARATOR = b"os-separator"
SEPARATED_PCRS = frozenset({*range(8), 9, 12, 13, 14})  # by systemd since 261, where it measures at all
PHASE_PCR = 11
MACHINE_PCR = 15  # machine id, volume keys, file systems
LEAVES_INITRD = b"leave-initrd"

PHASE = "phase"
SEPARATOR = "os-separator"
MACHINE_ID = "machine-id"
FILE_SYSTEM = "filesystem"
VOLUME_KEY = "volume-key"
_NV_INIT = "nvpcr-init"
_NV_SEPARATOR = "nvpcr-separator"
_USER_DATA = "imds-userdata"

# How the word of each kind begins, or what it is. The digest of a volume key depends on the key.
_WORDS: Mapping[str, tuple[bytes, bool]] = {
    PHASE: (b"", False),
    SEPARATOR: (OS_SEPARATOR, True),
    MACHINE_ID: (b"machine-id:", False),
    FILE_SYSTEM: (b"file-system:", False),
    _NV_INIT: (b"nvpcr-init:", False),
    _NV_SEPARATOR: (b"nvpcr-separator", True),
    _USER_DATA: (b"imds-userdata:", False),
}
_PCRS: Mapping[str, frozenset[int]] = {
    PHASE: frozenset({PHASE_PCR}),
    SEPARATOR: SEPARATED_PCRS,
    MACHINE_ID: frozenset({MACHINE_PCR}),
    FILE_SYSTEM: frozenset({MACHINE_PCR}),
    VOLUME_KEY: frozenset({8, 12, 13, 14, MACHINE_PCR}),  # tpm2-measure-pcr= of crypttab
    _NV_INIT: frozenset({9}),
    _NV_SEPARATOR: frozenset({9}),
    _USER_DATA: frozenset({12}),
}
# What boot loaders measure there is judged, so that it must not pass as the operating system's.
_LOADER_PCRS = frozenset({8, 9, 12, 13, 14})
_OPEN_PCRS = frozenset({9, 12, 13, MACHINE_PCR})  # to which later versions may add kinds of their own

# What may follow in PCR 11. A machine without an initrd begins with sysinit; one that goes to rescue mode and
# comes back, or is rebooted softly, passes through shutdown and final and keeps its PCRs.
_BEGIN = b""
_PHASES: Mapping[bytes, frozenset[bytes]] = {
    _BEGIN: frozenset({b"enter-initrd", b"sysinit"}),
    b"enter-initrd": frozenset({LEAVES_INITRD}),
    LEAVES_INITRD: frozenset({b"sysinit"}),
    b"sysinit": frozenset({b"ready", b"final"}),
    b"ready": frozenset({b"shutdown"}),
    b"shutdown": frozenset({b"final", b"ready"}),
    b"final": frozenset({b"sysinit"}),
}
_NO_SERVER = {
    b"factory-reset": "the machine is being reset to its factory state",
    b"storage-target-mode-start": "the machine offers its disks to others instead of running",
    b"storage-target-mode-stop": "the machine offered its disks to others instead of running",
}


@dataclass(frozen=True, slots=True)
class RecordFault:
    """Why a record cannot be what a sound system wrote; forged ones say something else than they extended."""

    record: UserSpaceRecord
    reason: str
    is_forged: bool = False


def kind_of(record: UserSpaceRecord) -> str:
    """The event type of `record`; of one that says none, what its word shows."""
    if record.event_type or record.word not in _PHASES:
        return record.event_type
    return PHASE


def judge_records(
    pcr: int, records: Sequence[UserSpaceRecord], *, is_begun: bool = True
) -> Iterator[RecordFault]:
    """What is wrong with `records`, all that one bank of one PCR has, in their order.

    `is_begun` is whether firmware or boot loaders have extended the PCR before.
    """
    phase = _BEGIN
    # The end of what loaders have measured could be left out of their log, and be shown as records here. Only
    # os-separator shows where it is. PCR 8 has none: there a policy misses what was left out as a whole.
    is_ended = pcr not in _LOADER_PCRS or is_separated(records[:1]) or (pcr == 8 and not is_begun)
    nv_indices_are_done = False
    for position, record in enumerate(records):
        kind = kind_of(record)
        fault = _forgery(record, kind) or _misplaced(record, kind, pcr)
        if fault is not None:
            yield fault
        elif not is_ended and not _is_proven(record, kind):
            yield RecordFault(
                record,
                "nothing shows that it is the operating system's and no boot loader's: its text does not "
                "prove it, and no os-separator comes first",
            )
        elif kind == SEPARATOR and position:
            yield RecordFault(record, "os-separator comes once, and before everything else in its PCR")
        elif kind in (_NV_INIT, _NV_SEPARATOR):
            if nv_indices_are_done:
                yield RecordFault(record, "it comes after nvpcr-separator, which ends such records")
            nv_indices_are_done = nv_indices_are_done or kind == _NV_SEPARATOR
        elif kind == PHASE:
            word = record.word or b""
            if word in _NO_SERVER:
                yield RecordFault(record, _NO_SERVER[word])
            elif word not in _PHASES[phase]:
                yield RecordFault(record, _out_of_order(word, phase))
            else:
                phase = word


def is_separated(records: Sequence[UserSpaceRecord]) -> bool:
    """Whether os-separator is among `records`."""
    return any(kind_of(record) == SEPARATOR and record.word == OS_SEPARATOR for record in records)


def unknown_kinds(pcr: int, records: Sequence[UserSpaceRecord]) -> tuple[UserSpaceRecord, ...]:
    """Records of kinds that are passed without being known."""
    return tuple(record for record in records if pcr in _OPEN_PCRS and kind_of(record) not in _PCRS)


def _forgery(record: UserSpaceRecord, kind: str) -> RecordFault | None:
    if kind not in _WORDS:
        return None
    word = record.word
    if word is None:  # a long one is logged in part
        if record.text.endswith("..."):
            return None
        return RecordFault(record, "its text is no escaped word", is_forged=True)
    wrong = [
        bank.label
        for bank, digest in record.digests.items()
        if is_computable(bank) and bank.digest(word) != digest
    ]
    if wrong:
        reason = f"its text is not what was extended: the {', '.join(wrong)} digest is that of something else"
        return RecordFault(record, reason, is_forged=True)
    return None


def _is_proven(record: UserSpaceRecord, kind: str) -> bool:
    """Whether the digest of `record`, which is no forgery, is that of a word of systemd's."""
    return kind in _WORDS and record.word is not None


def _misplaced(record: UserSpaceRecord, kind: str, pcr: int) -> RecordFault | None:
    if kind not in _PCRS:
        if pcr in _OPEN_PCRS:
            return None
        return RecordFault(record, f"the operating system extends nothing of that kind into PCR {pcr}")
    if pcr not in _PCRS[kind]:
        return RecordFault(record, f"{kind} belongs into another PCR than {pcr}")
    begin, is_whole = _WORDS.get(kind, (b"", False))
    word = record.word
    if word is not None and (word != begin if is_whole else not word.startswith(begin)):
        return RecordFault(record, f"its text is none of a record of type {kind}")
    return None


def _out_of_order(word: bytes, phase: bytes) -> str:
    if word not in _PHASES:
        return "it is none of the words that systemd extends by itself"
    before = phase.decode() or "the boot loader"
    return f"it cannot follow {before}"


def digest_of_separator(bank: HashAlgorithm) -> bytes:
    """What os-separator extends: a constant, so that it needs no record."""
    return bank.digest(OS_SEPARATOR)
