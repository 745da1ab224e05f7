"""What a daemon's machine may lose before anybody notices: room on its disk, a clock that goes steadily."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from keylime.service.health import Health

log = logging.getLogger(__name__)

_LOOK_S = 10.0
_TELL_INTERVAL_S = 86_400.0
_LEAST_SHARE = 20  # a twentieth of the disk
_LEAST_FREE = 1 << 30  # bytes
_JUMP_S = 5.0  # between two looks: time servers move a clock by less, or slowly
_REMEMBERED_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A time by the clock on the wall, and by one that nobody can set; seconds."""

    wall: float
    steady: float

    @classmethod
    def now(cls) -> Self:
        """This moment; the steady clock goes on while the machine sleeps."""
        return cls(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))


def disk_remark(free: int, size: int) -> str | None:
    """What is to be said of so many free bytes; None when there are enough."""
    if not size or free >= min(size // _LEAST_SHARE, _LEAST_FREE):
        return None
    return f"{free >> 20} MiB are free, {100 * free // size} % of the disk"


def jump_s(before: Moment, now: Moment) -> float:
    """By how many seconds the clock on the wall was set meanwhile; 0 for what no jump is."""
    moved_s = (now.wall - before.wall) - (now.steady - before.steady)
    return moved_s if abs(moved_s) >= _JUMP_S else 0.0


def free_and_size(directory: Path) -> tuple[int, int]:
    """Bytes that this program may still write where `directory` is, and how many there are in all."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


class Surroundings:
    """Looks after both, and says what is to be said: at once, and daily while it is so."""

    def __init__(
        self,
        directory: Path,
        *,
        is_speaker: bool = True,
        room: Callable[[Path], tuple[int, int]] = free_and_size,
        moment: Callable[[], Moment] = Moment.now,
    ) -> None:
        """One of several equal processes is the speaker: what is said is said once."""
        self._directory = directory
        self._is_speaker = is_speaker
        self._room = room
        self._moment = moment
        self._last = moment()
        self._disk: str | None = None
        self._told_at: float | None = None
        self._jump: tuple[float, Moment] | None = None

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_S)

    def look(self) -> None:
        """Looks once."""
        now = self._moment()
        if moved_s := jump_s(self._last, now):
            self._jump = moved_s, now
            self._say("the clock of this machine was %s; certificates and policies end by it", self._moved())
        self._last = now
        try:
            self._disk = disk_remark(*self._room(self._directory))
        except OSError as error:
            self._disk = f"it cannot be looked at: {error.strerror}"
        if self._disk is None:
            self._told_at = None
        elif self._told_at is None or now.steady - self._told_at >= _TELL_INTERVAL_S:
            self._told_at = now.steady
            self._say("the disk of %s fills up: %s; make room", self._directory, self._disk)

    def disk(self) -> str | None:
        """What somebody should see to, in words fit for anyone."""
        return self._disk

    def clock(self) -> str | None:
        """The same of the clock, for a day."""
        if self._jump is None or self._last.steady - self._jump[1].steady > _REMEMBERED_S:
            return None
        return self._moved()

    def _moved(self) -> str:
        if self._jump is None:
            return ""
        moved_s, at = self._jump
        way = "forward" if moved_s > 0 else "back"
        when = datetime.fromtimestamp(at.wall, UTC)
        return (
            f"set {way} by {abs(moved_s):.0f} s, to {when:%Y-%m-%d %H:%M} UTC: is it right now (timedatectl)?"
        )

    def _say(self, text: str, *values: object) -> None:
        if self._is_speaker:
            log.warning(text, *values)


def watched_surroundings(directory: Path, health: Health, *, is_speaker: bool) -> Surroundings:
    """Those of a daemon, which `health` asks."""
    found = Surroundings(directory, is_speaker=is_speaker)
    health.note("disk", found.disk)
    health.note("clock", found.clock)
    return found
