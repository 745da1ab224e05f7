"""What PCR 10 may have held at the moment of a quote, on a machine that measures without a pause.

The kernel adds an entry to its list, and then extends PCR 10: the list is ahead of the PCR by what is under
way. So whatever PCR 10 held after it was read is the value read, extended by the next entries of the list,
one by one. Pure; which of the values was quoted, the digest in the quote tells.

A `RunningReplay` remembers up to which entry the list accounts for a value that was read: from there on, each
new entry costs one step, however many come between two commands of the TPM. Where a list does not account for
the PCR from its beginning (a kernel that another one started by kexec, a list that was cut), one search finds
the place, and its end is remembered as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import Entry, parse_line
from keylime.ima.replay import ExtendMode, extend_value, hasher, modes_of
from keylime.ima.whole_entries import with_whole_entries
from keylime.tpm.pcr import IMA_PCR

_MOST_STEPS = 2_000_000  # extensions of a search in all: some seconds


@dataclass(frozen=True, slots=True)
class ListPlace:
    """A place in the list: its offset, the line before it, and what PCR 10 held when it had been extended."""

    offset: int
    line: bytes  # with its newline; empty at the start
    mode: ExtendMode
    value: bytes


class RunningReplay:
    """What PCR 10 of one bank held along the list, from a known place on."""

    def __init__(self, bank: HashAlgorithm) -> None:
        self._bank = bank
        self._places = tuple(ListPlace(0, b"", mode, bytes(bank.size)) for mode in modes_of(bank))

    @property
    def offset(self) -> int:
        """Where the line begins that comes before the known place."""
        place = self._places[0]
        return place.offset - len(place.line)

    @property
    def is_at_start(self) -> bool:
        """Whether no place is known but the list's beginning."""
        return not self._places[0].line

    def values_after(self, text: bytes, value: bytes) -> Sequence[bytes] | None:
        """What PCR 10 has held since it held `value`, or None if the list does not tell when that was.

        `text` is the list from `offset` on, as far as it is complete.
        """
        line = self._places[0].line
        if not text.startswith(line):
            return None
        lines = text[len(line) :].split(b"\n")[:-1]
        entries = _entries(lines)
        places, later = [], list[bytes]()
        for place in self._places:
            values = self._values(place, entries)
            if value in values:
                at = values.index(value)
                places.append(_moved(place, lines, at, value))
                later += values[at + 1 :]
        if not places:
            return None
        self._places = tuple(places)  # one, except where nothing was extended yet: then the mode is not known
        return later

    def learn(self, search: "Search") -> None:
        """Go on from where `search` has ended, if it found something."""
        place = search.place()
        if place is not None:
            self._places = (place,)

    def _values(self, place: ListPlace, entries: Sequence[Entry | None]) -> list[bytes]:
        """The value at `place` and after each entry; entries of other PCRs change nothing."""
        new_hash, current = hasher(self._bank), place.value
        values = [current]
        for entry in entries:
            if entry is not None:
                current = new_hash(current + extend_value(entry, self._bank, place.mode)).digest()
            values.append(current)
        return values


class Search:
    """`later_values` of the lines from `offset` on; whoever stops in the middle has found what was quoted."""

    def __init__(
        self, offset: int, lines: Sequence[bytes], likely: int, value: bytes, bank: HashAlgorithm
    ) -> None:
        self._lines = lines
        self._begin = ListPlace(offset, b"", ExtendMode.NATIVE, value)
        self._guesses = _searched(lines, likely, value, bank)
        self._latest: tuple[ExtendMode, int, bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        for guess in self._guesses:
            self._latest = guess
            yield guess[2]
        self._latest = None

    @property
    def has_found(self) -> bool:
        """Whether it stopped at a guess."""
        return self._latest is not None

    def place(self) -> ListPlace | None:
        """The place of the latest guess, None when they all were wrong."""
        if self._latest is None:
            return None
        mode, count, value = self._latest
        return _moved(replace(self._begin, mode=mode), self._lines, count, value)


def _moved(place: ListPlace, lines: Sequence[bytes], count: int, value: bytes) -> ListPlace:
    """The place `count` lines after `place`, where PCR 10 held `value`."""
    line = lines[count - 1] + b"\n" if count else place.line
    return ListPlace(place.offset + sum(map(len, lines[:count])) + count, line, place.mode, value)


def later_values(lines: Sequence[bytes], likely: int, value: bytes, bank: HashAlgorithm) -> Iterator[bytes]:
    """The values that PCR 10 of `bank` has had since it held `value`, right guesses among wrong ones.

    `lines` end behind the last entry that can count. Which of them is the first that `value` does not hold is
    not known: probably number `likely`, perhaps one soon after it, else one before.
    """
    for _, _, later in _searched(lines, likely, value, bank):
        yield later


def _searched(
    lines: Sequence[bytes], likely: int, value: bytes, bank: HashAlgorithm
) -> Iterator[tuple[ExtendMode, int, bytes]]:
    """`later_values`, each with the mode of extending and the number of lines that it accounts for."""
    entries = _entries(lines)
    starts = [*range(likely, len(entries)), *range(min(likely, len(entries)) - 1, -1, -1)]
    modes = modes_of(bank)
    extended = {
        mode: [None if entry is None else extend_value(entry, bank, mode) for entry in entries]
        for mode in modes
    }
    new_hash = hasher(bank)
    steps = 0
    for mode, start in ((mode, start) for mode in modes for start in starts):
        current = value
        for count, digest in enumerate(extended[mode][start:], start=start + 1):
            if digest is None:
                continue
            current = new_hash(current + digest).digest()
            yield mode, count, current
            steps += 1
            if steps == _MOST_STEPS:
                return


def _entries(lines: Sequence[bytes]) -> list[Entry | None]:
    """The entries of `lines`, None for one of another PCR, as far as they can be read."""
    entries: list[Entry | None] = []
    for line in with_whole_entries(list(lines)):
        if not line:  # of an entry that goes on
            entries.append(None)
            continue
        try:
            entry = parse_line(line)
        except MalformedEvidence:
            break
        entries.append(entry if entry.pcr == IMA_PCR else None)
    return entries
