"""The day that daemons believe in: a file says how far their clock is off, and timers go on as they are.

faketime (0.9.10) is no help: told to leave the monotonic clock alone it breaks sleeps and event loops.
"""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.lab.daemon import Daemon

COMPILER = "/usr/bin/gcc"
CLOCK_FILE = "OTHER_DAY"  # the environment variable that names it
NOTICED_S = 0.1  # how often a thread looks
_SOURCE = Path(__file__).parent / "other_day.c"


def set_clock(file: Path, off: timedelta) -> None:
    """Tells those who follow `file` how far off their clocks are; within `NOTICED_S` each thread knows."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(f"{round(off.total_seconds())}\n")
    new.rename(file)


@dataclass
class Calendar:
    """Counts days from today; a file in `directory` tells those who follow it."""

    directory: Path
    days: int = 0

    def __post_init__(self) -> None:
        output = str(self._library)
        command = [COMPILER, "-shared", "-fPIC", "-Wall", "-Werror", "-o", output, str(_SOURCE)]
        subprocess.run(command, check=True)  # noqa: S603
        self.set(0)

    def set(self, days: int) -> None:
        """From now on, within `NOTICED_S`, for processes that run and those to come."""
        set_clock(self._file, timedelta(days=days))
        self.days = days

    def follow(self, *daemons: Daemon) -> None:
        """When they are started next they do."""
        for daemon in daemons:
            daemon.environment = {**daemon.environment, **self.environment}

    @property
    def environment(self) -> Mapping[str, str]:
        """What makes a process and its children follow."""
        return {"LD_PRELOAD": str(self._library), CLOCK_FILE: str(self._file)}

    @property
    def now(self) -> datetime:
        """The time there."""
        return datetime.now(UTC) + timedelta(days=self.days)

    @property
    def _file(self) -> Path:
        return self.directory / "day"

    @property
    def _library(self) -> Path:
        return self.directory / "other_day.so"
