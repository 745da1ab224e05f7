"""What the operating system measures of one machine alone: its id, the keys of its volumes, file systems.

No policy for many machines can list them. They are learned with the first accepted quote that covers them,
and must stay what they are until the agent is enrolled anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.os_records import (
    FILE_SYSTEM,
    LEAVES_INITRD,
    MACHINE_ID,
    VOLUME_KEY,
    kind_of,
)
from keylime.measured_boot.user_space_log import UserSpaceLog, UserSpaceRecord

_VOLUME = "key of volume "
MAX_VALUES = 64  # a machine has some few; those beyond are not learned


class MachineValue(msgspec.Struct, frozen=True):
    """One value: whose it is, what it is, in which PCR; whether a boot without it is another machine's."""

    name: str
    value: str
    pcr: int
    required: bool = False


@dataclass(frozen=True, slots=True)
class ChangedValue:
    """A value that is not what was learned; `observed` is None for one that is not there."""

    name: str
    expected: str
    observed: str | None
    record: UserSpaceRecord | None = None


def machine_values(
    covered: Sequence[UserSpaceRecord], log: UserSpaceLog
) -> Iterator[tuple[MachineValue, UserSpaceRecord]]:
    """The values in the records that a quote covers, in their order.

    The key of a volume that was opened in the initrd is required: what holds the root file system is opened
    there, and a copy of the system on a volume without that key would have everything else.
    """
    left = next((one.number for one in log.records if one.word == LEAVES_INITRD), None)
    for record in covered:
        if record.pcr is None or (value := _value(record)) is None:
            continue
        in_initrd = kind_of(record) == VOLUME_KEY and left is not None and record.number < left
        yield MachineValue(*value, record.pcr, in_initrd), record


def compare_values(
    learned: Sequence[MachineValue],
    seen: Sequence[tuple[MachineValue, UserSpaceRecord]],
    *,
    bank: HashAlgorithm,
    compared: frozenset[int],
) -> Iterator[ChangedValue]:
    """What of `seen` is not as it was `learned`, or as it was seen before in this boot, and what is missing.

    Only PCRs that are `compared` are explained, so that nothing is missing in another one.
    """
    known = {value.name: value.value for value in learned}
    for value, record in seen:
        expected = known.setdefault(value.name, value.value)
        if not _is_same(value, expected, bank):
            yield ChangedValue(value.name, expected, value.value, record)
    names = {value.name for value, _ in seen}
    for value in learned:
        if value.required and value.pcr in compared and value.name not in names:
            yield ChangedValue(value.name, value.value, None)


def learn_values(
    learned: Sequence[MachineValue], seen: Sequence[tuple[MachineValue, UserSpaceRecord]]
) -> tuple[MachineValue, ...]:
    """What is known after an accepted quote."""
    known = {value.name: value for value in learned}
    for value, _ in seen:
        if value.name not in known and len(known) < MAX_VALUES:
            known[value.name] = value
    return tuple(known.values())


def _value(record: UserSpaceRecord) -> tuple[str, str] | None:
    kind, text = kind_of(record), record.text
    if kind == MACHINE_ID:
        return "machine id", text.removeprefix("machine-id:")
    if kind == FILE_SYSTEM:
        mount_point, _, rest = text.removeprefix("file-system:").partition(":")
        return f"file system at {mount_point}", rest
    if kind == VOLUME_KEY:
        volume = text.removeprefix("cryptsetup:").partition(":")[0]
        banks = sorted(record.digests.items())
        return f"{_VOLUME}{volume}", " ".join(f"{bank.label}:{digest.hex()}" for bank, digest in banks)
    return None


def _is_same(seen: MachineValue, expected: str, bank: HashAlgorithm) -> bool:
    """Of a volume's digests the quote vouches for that of its bank; it may not have been learned."""
    if not seen.name.startswith(_VOLUME):
        return seen.value == expected
    digests = {word for word in seen.value.split() if word.startswith(f"{bank.label}:")}
    learned = {word for word in expected.split() if word.startswith(f"{bank.label}:")}
    return not learned or digests == learned
