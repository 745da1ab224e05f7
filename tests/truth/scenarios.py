"""Scenarios as data: what goes wrong, in which order, and which machines turn bad meanwhile."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psycopg

from tests.fakes.eventual import eventually
from tests.fakes.postgresql import PostgresServer, running_postgresql
from tests.fakes.tcp_proxy import TcpProxy
from tests.truth.faults import FaultKind
from tests.truth.fleet import KnownMachine
from tests.truth.history import Fault, Loss
from tests.truth.stage import LIMIT_S, Stage


class Step(Protocol):
    """One thing that happens, to a stage and to machines that are good so far."""

    async def play(self, stage: Stage, machines: list[KnownMachine]) -> None:
        """Takes those that turn bad out of `machines`."""
        ...


@dataclass(frozen=True)
class Scenario:
    """Its `machines` are new; those that no step turns bad stay good.

    `says` is what some verifier must have logged.
    """

    name: str
    steps: tuple[Step, ...]
    machines: int = 3
    pushers: int = 0  # machines that attest by themselves
    keeps_owners: bool = False  # nobody dies, and nobody takes anything from others
    shows_pending: bool = False  # somebody sees that a verdict waits
    says: str = ""


async def play(scenario: Scenario, stage: Stage) -> None:
    """All of it, until everything has been made good."""
    machines = await stage.add_machines(scenario.machines)
    await stage.add_pushers(scenario.pushers)
    concerned = {machine.agent_id for machine in machines}
    owners = stage.owners()
    await play_steps(scenario.steps, stage, machines)
    await stage.until_calm()
    assert not scenario.keeps_owners or stage.owners() == owners, "shards were taken from who was alive"
    assert not scenario.shows_pending or stage.showed_pending(concerned), "nobody saw that a verdict waits"
    assert stage.said(scenario.says), f"nobody said {scenario.says!r}"


async def play_steps(steps: Sequence[Step], stage: Stage, machines: list[KnownMachine]) -> None:
    """One after the other."""
    for step in steps:
        await step.play(stage, machines)


@dataclass(frozen=True)
class TurnBad:
    """Some machines turn bad and stay so, or are good again as soon as a verifier has found them.

    Then nobody but this verifier knows: whoever asks again gets a pass.
    """

    count: int = 1
    for_one_round: bool = False

    async def play(self, stage: Stage, machines: list[KnownMachine]) -> None:
        turned = [machines.pop() for _ in range(self.count)]
        for machine in turned:
            machine.turn_bad()
        if self.for_one_round:
            await eventually(lambda: all(map(stage.judged, turned)), limit_s=LIMIT_S)
            for machine in turned:
                machine.turn_good()


@dataclass(frozen=True)
class PusherTurnsBad:
    """One of the machines that attest by themselves turns bad and stays so."""

    async def play(self, stage: Stage, _machines: list[KnownMachine]) -> None:
        stage.good_pushers[-1].turn_bad()


@dataclass(frozen=True)
class UntilJudged:
    """Everybody who is bad is known to be so by some verifier, whether it could write it or not."""

    async def play(self, stage: Stage, _machines: list[KnownMachine]) -> None:
        bad = [machine for machine in stage.machines if not machine.is_good]
        await eventually(lambda: all(map(stage.judged, bad)), limit_s=LIMIT_S)


@dataclass(frozen=True)
class UntilFound:
    """Everybody who is bad is rejected."""

    async def play(self, stage: Stage, _machines: list[KnownMachine]) -> None:
        bad = [machine for machine in stage.machines if not machine.is_good]
        await eventually(lambda: stage.are_rejected(bad), limit_s=LIMIT_S)


@dataclass(frozen=True)
class UntilTakenOver:
    """So many verifiers have all the shards, those of the others among them."""

    by: int

    async def play(self, stage: Stage, _machines: list[KnownMachine]) -> None:
        await stage.site.until_shared(self.by, limit_s=LIMIT_S)


@dataclass(frozen=True)
class Wait:
    """Nothing happens, for so many leases."""

    leases: float

    async def play(self, stage: Stage, _machines: list[KnownMachine]) -> None:
        await asyncio.sleep(self.leases * stage.bounds.lease_s)


@dataclass(frozen=True)
class During:
    """A fault lasts for so many leases, and as long as its steps take."""

    fault: FaultKind
    leases: float
    steps: tuple[Step, ...] = ()

    async def play(self, stage: Stage, machines: list[KnownMachine]) -> None:
        began = time.monotonic()
        held = await self.fault.begin(stage)
        holds = time.monotonic()
        try:
            over = asyncio.create_task(asyncio.sleep(self.leases * stage.bounds.lease_s))
            await play_steps(self.steps, stage, machines)
            await over
        finally:
            lets_go = time.monotonic()
            await self.fault.end(stage, held)
            kept = (holds, lets_go) if self.fault.keeps_verdicts else None
            fault = Fault(self.fault.kind, began, time.monotonic(), self.fault.blinds, kept)
            stage.faults.append(fault)


@dataclass(frozen=True)
class Terminate:
    """All verifiers are stopped by their service manager; each must take no longer than `limit_s`."""

    limit_s: float = 5.0

    async def play(self, stage: Stage, _machines: list[KnownMachine]) -> None:
        numbers = range(len(stage.site.processes))
        stage.away_since = time.monotonic()
        took_s = await asyncio.gather(*map(stage.terminate, numbers))
        print(f"[stopped in {max(took_s):.1f} s]")
        assert max(took_s) < self.limit_s + stage.bounds.grace_s / 4, took_s


@dataclass(frozen=True)
class Start:
    """All verifiers are started again."""

    async def play(self, stage: Stage, _machines: list[KnownMachine]) -> None:
        numbers = range(len(stage.site.processes))
        await asyncio.gather(*map(stage.start, numbers))
        stage.faults.append(Fault("everything stopped", stage.away_since, time.monotonic(), blinds=True))


@dataclass(frozen=True)
class Restored:
    """A backup of the SQLite file takes its place, from before the steps."""

    steps: tuple[Step, ...]

    async def play(self, stage: Stage, machines: list[KnownMachine]) -> None:
        file = Path(stage.url.removeprefix("sqlite:///"))
        backup = file.with_name("backup.sqlite")
        forgets_since = time.monotonic()
        await asyncio.to_thread(_copy, file, backup)
        await play_steps(self.steps, stage, machines)
        began = time.monotonic()
        await asyncio.to_thread(_copy, backup, file)
        stage.losses.append(Loss(forgets_since, began, time.monotonic()))
        stage.faults.append(Fault("restored", began, time.monotonic(), blinds=True))


def _copy(source: Path, target: Path) -> None:
    """All pages in one transaction, beside whoever uses the files."""
    with (
        contextlib.closing(sqlite3.connect(source, timeout=60)) as there,
        contextlib.closing(sqlite3.connect(target, timeout=60)) as here,
    ):
        there.backup(here)


@dataclass(frozen=True)
class Promoted:
    """A standby that has not heard of the steps takes over from its primary."""

    steps: tuple[Step, ...]

    async def play(self, stage: Stage, machines: list[KnownMachine]) -> None:
        primary = stage.server
        assert isinstance(primary, PostgresServer)
        replication = await stage.stack.enter_async_context(TcpProxy(primary.port))
        standby = await asyncio.to_thread(
            stage.stack.enter_context, running_postgresql(primary_port=replication.port)
        )
        await until_replicated(primary, standby)
        forgets_since = time.monotonic()
        replication.cut()
        await play_steps(self.steps, stage, machines)
        began = time.monotonic()
        await asyncio.to_thread(primary.stop, "immediate")
        await asyncio.to_thread(standby.promote)
        stage.follow(standby)
        ended = time.monotonic()
        stage.losses.append(Loss(forgets_since, began, ended))
        stage.faults.append(Fault("promoted", began, ended, blinds=True))


async def until_replicated(primary: PostgresServer, standby: PostgresServer) -> None:
    """Returns when the standby has all that the primary has written until now."""
    with psycopg.connect(primary.url, autocommit=True) as connection:
        written = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert written is not None

    def has_it() -> bool:
        with psycopg.connect(standby.url, autocommit=True) as connection:
            found = connection.execute(
                "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [written[0]]
            ).fetchone()
            return found is not None and bool(found[0])

    await eventually(has_it, limit_s=LIMIT_S)
