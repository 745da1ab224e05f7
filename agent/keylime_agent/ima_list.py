"""The IMA measurement list by entry numbers, and what PCR 10 held along it, of a log that grows.

Whoever makes a list gives it the log to read; blocking, as reading that is.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from keylime.hashes import HashAlgorithm
from keylime.ima.moving_pcr import RunningReplay, Search
from keylime.ima.names import list_text

log = logging.getLogger(__name__)

_BOOT_AGGREGATE = b" boot_aggregate"
_MARKERS = 64  # of the last lines one that is unlike all others is looked for among so many
_MAX_BOOKMARKS = 128
_UNDER_WAY = 32  # entries that may be in the list and not in the PCR yet; the kernel's is one


class LogText(Protocol):
    """A log that grows and may be replaced by another one."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def identity(self) -> tuple[int, int] | None:
        """Equal as long as the same log is read."""
        ...

    def reopen(self) -> bool:
        """Whether there is one to read, by now perhaps another one."""
        ...

    def read_from(self, offset: int, until: bytes | None = None) -> bytes:
        """Everything from `offset` on; with `until` no more than what holds it, and some bytes."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@dataclass(frozen=True, slots=True)
class ListExcerpt:
    """Complete lines of the IMA list; `entry` is the index of the first one."""

    text: str
    entry: int


class PcrHistory:
    """What PCR 10 held along the IMA list, by bank: kept between quotes, so that each entry counts once."""

    def __init__(self) -> None:
        self._replays: dict[HashAlgorithm, RunningReplay] = {}
        self._searches: dict[HashAlgorithm, Search] = {}

    def replay(self, bank: HashAlgorithm) -> RunningReplay:
        """That of `bank`, with what the latest search has found."""
        replay = self._replays.setdefault(bank, RunningReplay(bank))
        search = self._searches.pop(bank, None)
        if search is not None:
            replay.learn(search)
        return replay

    def restarted(self, bank: HashAlgorithm) -> RunningReplay:
        """A new one for `bank`: the list is another one."""
        self._replays[bank] = RunningReplay(bank)
        return self._replays[bank]

    def searching(self, bank: HashAlgorithm, search: Search) -> Search:
        """`search`, to be asked for its place at the next quote."""
        self._searches[bank] = search
        return search

    @property
    def is_known(self) -> bool:
        """Whether a place in the list is known at which PCR 10 held what the list says."""
        found = any(search.has_found for search in self._searches.values())
        return found or any(not replay.is_at_start for replay in self._replays.values())


class ImaTail:
    """The end of the IMA list while a quote is made; used by one thread, beside all other readers."""

    def __init__(self, file: LogText, history: PcrHistory) -> None:
        self._file = file
        self._history = history
        self._start = 0  # offset of a line shortly before the end at the last mark
        self._likely: int | None = None  # how many complete lines there were from there on

    def mark(self) -> None:
        """Remembers where the list ends now."""
        if self._history.is_known:  # what PCR 10 holds is found in the list then, wherever that ends
            return
        lines = self._lines(self._start)
        passed = lines[: max(0, len(lines) - _UNDER_WAY)]
        self._start += sum(len(line) + 1 for line in passed)
        self._likely = len(lines) - len(passed)

    def later_values(self, bank: HashAlgorithm, value: bytes) -> Iterable[bytes]:
        """What PCR 10 may hold by now if it held `value` soon after the mark."""
        replay = self._history.replay(bank)
        values = replay.values_after(self._text(replay.offset), value)
        if values is None and not replay.is_at_start:
            replay = self._history.restarted(bank)
            values = replay.values_after(self._text(0), value)
        if values is not None:
            return values
        if self._likely is None:
            return ()  # the next attempt begins with a mark
        # The last entry may have been in the list already, and not in the PCR.
        likely = max(0, self._likely - 1)
        search = Search(self._start, self._lines(self._start), likely, value, bank)
        return self._history.searching(bank, search)

    def _lines(self, offset: int) -> list[bytes]:
        return self._text(offset).split(b"\n")[:-1]

    def _text(self, offset: int) -> bytes:
        """The complete lines from `offset` on."""
        text = self._file.read_from(offset)
        return text[: text.rfind(b"\n") + 1]


class ImaList:
    """The IMA list by entry numbers. Where entries begin is remembered, so that a poll reads what is new.

    Entries are counted from the boot. Since Linux 7.2 (CONFIG_IMA_STAGING) somebody may delete the first ones
    from the kernel's list: how many there were is told by where the lines that were read last are now.
    """

    def __init__(self, file: LogText) -> None:
        self._file = file
        self._identity: tuple[int, int] | None = None
        self._deleted = 0  # entries that the kernel has no more
        self._bookmarks: dict[int, int] = {0: 0}  # entry -> offset, in the order they were last used
        self._first = b""  # line
        self._seen = 0  # entries, the deleted ones among them
        self._marker: tuple[int, bytes] | None = None  # an entry that was read last, by number and line
        self._history = PcrHistory()

    def open(self) -> bool:
        """Whether there is a list; warns when there is none, since agents without IMA are ordinary."""
        if self._file.reopen():
            return True
        log.warning("IMA measurement list %s cannot be read: quotes will not carry one", self._file.path)
        return False

    def tail(self) -> ImaTail | None:
        """The end of the list from now on, None when there is no list."""
        return ImaTail(self._file, self._history) if self._file.reopen() else None

    def read_from(self, entry: int) -> ListExcerpt | None:
        """The lines from `entry` on, None when there is no list.

        All lines that there are, called entry 0, when it has fewer entries or `entry` was deleted. A line
        that is still being written is left out: it belongs to the next poll.
        """
        if not self._file.reopen():
            return None
        known, text = self._lines_before(entry)
        skipped = _skip_lines(text, entry - known) if entry >= known else None
        if skipped is None:
            entry, known, skipped = 0, self._deleted, 0
            text = self._lines_at(known) or b""
        begins = max(entry, known)
        self._remember(begins, self._bookmarks[known] + skipped)
        self._remember(known + text.count(b"\n"), self._bookmarks[known] + len(text))
        self._mark(known, text)
        return ListExcerpt(list_text(text[skipped:]), entry)

    def count(self) -> int | None:
        """How many entries there have been since the boot, None when there is no list."""
        if not self._file.reopen():
            return None
        known, text = self._lines_before(None)
        entries = known + text.count(b"\n")
        self._remember(entries, self._bookmarks[known] + len(text))
        self._mark(known, text)
        return entries

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _lines_before(self, entry: int | None) -> tuple[int, bytes]:
        """The last entry up to `entry` (None: of all) with a bookmark, and the lines from it on."""
        if self._file.identity != self._identity:
            self._forget()
        elif self._first_line() != self._first:
            self._find_again()
        marked = (number for number in self._bookmarks if entry is None or number <= entry)
        known = max(marked, default=self._deleted)
        text = self._lines_at(known)
        if text is None:  # the file was cut or written anew
            self._find_again()
            known = self._deleted
            text = self._lines_at(known) or b""
        return known, text

    def _lines_at(self, known: int) -> bytes | None:
        """The complete lines from the bookmark of entry `known`, or None if no line begins there."""
        offset = self._bookmarks[known]
        if offset == 0:
            text = self._file.read_from(0)
        else:
            before = self._file.read_from(offset - 1)
            if not before.startswith(b"\n"):
                return None
            text = before[1:]
        return text[: text.rfind(b"\n") + 1]

    def _first_line(self) -> bytes:
        return self._file.read_from(0, b"\n").partition(b"\n")[0]

    def _mark(self, known: int, text: bytes) -> None:
        """Remembers how the list begins and, of its end, a line that it has once: violations look alike."""
        self._first = self._first_line()
        self._seen = max(self._seen, known + text.count(b"\n"))
        end = known + text.count(b"\n")
        for number, line in enumerate(reversed(text.rsplit(b"\n", _MARKERS)[:-1]), 1):
            if not _is_violation(line):
                self._marker = end - number, line
                return

    def _find_again(self) -> None:
        """The numbers of the lines in a list that does not begin as it did."""
        text = self._file.read_from(0)
        lines = text[: text.rfind(b"\n") + 1].split(b"\n")[:-1]
        seen, marker = self._seen, self._marker
        self._forget()
        if marker is None or (lines and _BOOT_AGGREGATE in lines[0]):
            return
        index, line = marker
        # When all that was seen is gone, what comes goes on from there, unless more is gone: PCR 10 tells.
        self._deleted = index - lines.index(line) if line in lines else seen
        self._bookmarks = {self._deleted: 0}
        self._seen, self._marker = seen, marker
        log.info("entries before %d were deleted from the IMA measurement list", self._deleted)

    def _remember(self, entry: int, offset: int) -> None:
        if entry == self._deleted:
            return
        self._bookmarks.pop(entry, None)
        self._bookmarks[entry] = offset
        while len(self._bookmarks) > _MAX_BOOKMARKS:
            del self._bookmarks[next(number for number in self._bookmarks if number != self._deleted)]

    def _forget(self) -> None:
        self._deleted, self._bookmarks = 0, {0: 0}
        self._first, self._seen, self._marker = b"", 0, None
        self._identity = self._file.identity


def _is_violation(line: bytes) -> bool:
    """Whether `line` has a template hash of zeros."""
    return not b"".join(line.split(None, 2)[1:2]).strip(b"0")


def _skip_lines(text: bytes, count: int) -> int | None:
    """The offset after `count` lines of `text`, None if there are fewer."""
    offset = 0
    for _ in range(count):
        offset = text.find(b"\n", offset) + 1
        if offset == 0:
            return None
    return offset
