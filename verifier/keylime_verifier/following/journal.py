"""Events as lines of JSON, in a file or in the verifier's log, for syslog and whatever collects lines."""

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from keylime.file_errors import file_errors_explained
from keylime.messages.history import HistoryEvent

lines = logging.getLogger("keylime.events")

_TAIL = 1 << 17  # bytes: more than the longest line has
_MODE = 0o640


class _Seen(msgspec.Struct):
    id: int


class EventLines:
    """Lines of JSON; up to where they are told is noted in a small file beside the verifier's others."""

    def __init__(self, note: Path, path: Path | None) -> None:
        """`path` None stands for the log."""
        self._note = note
        self._path = path
        self._seen: int | None = None

    async def seen(self) -> int | None:
        if self._seen is None:
            self._seen = await asyncio.to_thread(self._read)
        return self._seen

    async def bring(self, events: Sequence[HistoryEvent], seen: int) -> None:
        await asyncio.to_thread(self._write, events, seen)
        self._seen = seen

    def _read(self) -> int | None:
        """What the note says, or the last line where it was written and the note no more."""
        with file_errors_explained():
            noted = _id_in(self._note.read_bytes()) if self._note.exists() else None
            if self._path is None or not self._path.exists() or noted is None:
                return noted
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                told = [found for line in file.read().splitlines() if (found := _id_in(line)) is not None]
            return max([noted, *told[-1:]])

    def _write(self, events: Sequence[HistoryEvent], seen: int) -> None:
        text = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        with file_errors_explained():
            if self._path is None:
                for line in text.decode().splitlines():
                    lines.info("%s", line)
            elif text:
                # Opened each time: whoever rotates it need not tell us.
                file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
                try:
                    os.write(file, text)
                finally:
                    os.close(file)
            beside = self._note.with_suffix(".new")
            beside.write_bytes(msgspec.json.encode(_Seen(seen)))
            beside.replace(self._note)


def _id_in(line: bytes) -> int | None:
    try:
        return msgspec.json.decode(line, type=_Seen).id
    except msgspec.DecodeError:
        return None
