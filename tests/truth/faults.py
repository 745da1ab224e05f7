"""What goes wrong for a time, as data: `begin` does it to a stage, `end` makes it good."""

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from tests.fakes.databases import DatabaseServer
from tests.fakes.eventual import eventually
from tests.fakes.stepping_clock import step_clock
from tests.truth.stage import LIMIT_S, Stage

_SMALL = 2**26  # bytes; nothing larger is filled
_TRANSACTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity "
    "WHERE application_name ~ '[:]{pid}$' AND backend_xid IS NOT NULL",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx t "
    "JOIN performance_schema.session_connect_attrs a ON a.processlist_id = t.trx_mysql_thread_id "
    "WHERE a.attr_name = '_pid' AND a.attr_value = '{pid}' AND t.trx_rows_modified > 0",
}
# MariaDB shows its transactions as they were, until nobody has asked for a tenth of a second.
_SHOWN_LATE_S = {"mysql": 0.15}


class FaultKind(Protocol):
    """Something that goes wrong, see `Fault`."""

    kind: ClassVar[str]

    @property
    def blinds(self) -> bool:
        """Whether nothing can be expected of verifiers."""
        ...

    @property
    def keeps_verdicts(self) -> bool:
        """Whether no verdict can be written."""
        ...

    async def begin(self, stage: Stage) -> object:
        """From now on; what is returned is given to `end`."""
        ...

    async def end(self, stage: Stage, held: Any) -> None:
        """Until now."""
        ...


class _OfDatabase:
    blinds: ClassVar[bool] = True
    keeps_verdicts: ClassVar[bool] = True


class _OfVerifiers:
    blinds: ClassVar[bool] = False
    keeps_verdicts: ClassVar[bool] = False


def _server(stage: Stage) -> DatabaseServer:
    assert stage.server is not None, "a fault of servers only"
    return stage.server


@dataclass(frozen=True)
class Stopped(_OfDatabase):
    """The database server is stopped, in good order or as by a crash."""

    mode: str = "fast"
    kind: ClassVar[str] = "database stopped"

    async def begin(self, stage: Stage) -> None:
        await asyncio.to_thread(_server(stage).stop, self.mode)

    async def end(self, stage: Stage, _held: None) -> None:
        await asyncio.to_thread(_server(stage).start)


@dataclass(frozen=True)
class Frozen(_OfDatabase):
    """All processes of the server stop where they are: connections stay, and nothing answers."""

    kind: ClassVar[str] = "database frozen"

    async def begin(self, stage: Stage) -> None:
        await asyncio.to_thread(_server(stage).freeze)

    async def end(self, stage: Stage, _held: None) -> None:
        await asyncio.to_thread(_server(stage).thaw)


@dataclass(frozen=True)
class Silent:
    """The lines of some verifiers to the database are dead, as behind a pooler; empty: of all."""

    numbers: tuple[int, ...] = ()
    kind: ClassVar[str] = "lines silent"

    @property
    def blinds(self) -> bool:
        """Nobody has the database."""
        return not self.numbers

    keeps_verdicts = blinds

    async def begin(self, stage: Stage) -> None:
        for number in self.numbers or range(len(stage.lines)):
            stage.lines[number].cut()

    async def end(self, stage: Stage, _held: None) -> None:
        for number in self.numbers or range(len(stage.lines)):
            stage.lines[number].heal()


@dataclass(frozen=True)
class Locked:
    """Somebody keeps a table of a server, or the only write lock of SQLite."""

    table: str = "agents"
    kind: ClassVar[str] = "database locked"
    blinds: ClassVar[bool] = True

    @property
    def keeps_verdicts(self) -> bool:
        """Rejections are written beside a lock of what they do not touch."""
        return self.table in ("agents", "progress", "shards")

    async def begin(self, stage: Stage) -> contextlib.ExitStack:
        return await asyncio.to_thread(self._lock, stage)

    def _lock(self, stage: Stage) -> contextlib.ExitStack:
        held = contextlib.ExitStack()
        if stage.server is None:
            file = sqlite3.connect(_path(stage), timeout=60, isolation_level=None, check_same_thread=False)
            held.callback(file.close)
            file.execute("BEGIN IMMEDIATE")
            held.callback(file.rollback)
        else:
            held.enter_context(stage.server.holding(stage.url, stage.server.lock_table(self.table)))
        return held

    async def end(self, _stage: Stage, held: contextlib.ExitStack) -> None:
        held.close()


def _path(stage: Stage) -> Path:
    return Path(stage.url.removeprefix("sqlite:///"))


@dataclass(frozen=True)
class Full:
    """The file system of the SQLite file has no room left; it is a small one of the file's own."""

    kind: ClassVar[str] = "disk full"
    blinds: ClassVar[bool] = True
    keeps_verdicts: ClassVar[bool] = False  # there may be room in the file itself

    async def begin(self, stage: Stage) -> Path:
        ballast = _path(stage).with_name("ballast")
        await asyncio.to_thread(_fill, ballast)
        return ballast

    async def end(self, _stage: Stage, held: Path) -> None:
        await asyncio.to_thread(held.unlink)


def _fill(ballast: Path) -> None:
    if shutil.disk_usage(ballast.parent).total > _SMALL:
        pytest.skip("needs root, to mount a small file system")
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@dataclass(frozen=True)
class Paused(_OfVerifiers):
    """Verifiers stop as in a debugger. With `holding_locks`, in the middle of a transaction."""

    numbers: tuple[int, ...]
    holding_locks: bool = False
    kind: ClassVar[str] = "verifiers paused"

    async def begin(self, stage: Stage) -> None:
        for number in self.numbers:
            process = stage.site.processes[number]
            if self.holding_locks:
                await eventually(
                    functools.partial(_stopped_in_transaction, stage, process.pid), limit_s=LIMIT_S
                )
            else:
                await stage.site.pause(process)

    async def end(self, stage: Stage, _held: None) -> None:
        for number in self.numbers:
            stage.site.processes[number].send(signal.SIGCONT)


async def _stopped_in_transaction(stage: Stage, pid: int) -> bool:
    """Stops a process, and lets it go on unless it has written something that it has not committed."""
    backend = stage.url.partition("+")[0].partition(":")[0]
    late_s = _SHOWN_LATE_S.get(backend, 0.0)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(late_s)
    if stage.site.query(_TRANSACTIONS[backend].format(pid=pid)) != [(0,)]:
        return True
    os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(2 * late_s)  # or it would get on with nothing
    return False


@dataclass(frozen=True)
class Killed(_OfVerifiers):
    """Verifiers end as by a power cut, and are started again."""

    numbers: tuple[int, ...]
    kind: ClassVar[str] = "verifiers killed"

    async def begin(self, stage: Stage) -> None:
        for number in self.numbers:
            await stage.kill(number)

    async def end(self, stage: Stage, _held: None) -> None:
        for number in self.numbers:
            await stage.start(number)


@dataclass(frozen=True)
class Terminated:
    """Verifiers are stopped by their service manager, and started again."""

    numbers: tuple[int, ...]
    kind: ClassVar[str] = "verifiers stopped"
    blinds: ClassVar[bool] = True  # all of them may be away
    keeps_verdicts: ClassVar[bool] = False

    async def begin(self, stage: Stage) -> None:
        await asyncio.gather(*(stage.terminate(number) for number in self.numbers))

    async def end(self, stage: Stage, _held: None) -> None:
        await asyncio.gather(*(stage.start(number) for number in self.numbers))


@dataclass(frozen=True)
class ClockStep(_OfVerifiers):
    """The clock of PostgreSQL is set, and stays so."""

    seconds: float = field(default=-3600.0)
    kind: ClassVar[str] = "clock"

    async def begin(self, stage: Stage) -> None:
        await asyncio.to_thread(step_clock, stage.url, self.seconds)

    async def end(self, stage: Stage, _held: None) -> None:
        pass
