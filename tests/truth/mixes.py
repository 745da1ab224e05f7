"""Random faults, repeatable by their seed, while machines turn bad."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence

from tests.truth.faults import (
    ClockStep,
    FaultKind,
    Frozen,
    Full,
    Killed,
    Locked,
    Paused,
    Silent,
    Stopped,
    Terminated,
)
from tests.truth.fleet import KnownMachine
from tests.truth.scenarios import During, Promoted, TurnBad, Wait, play_steps
from tests.truth.stage import Stage

_TABLES = ("agents", "progress", "shards", "members", "change_counters", "revocations")
_OF_DATABASE = (Stopped, Frozen, Locked, Full, ClockStep)


class Mix:
    """Does harm at random, to all but one of the verifiers and once to the database at any time."""

    def __init__(self, stage: Stage, chance: random.Random, kinds: Sequence[type[FaultKind]]) -> None:
        """`kinds` are the faults that there may be; twice means twice as often."""
        self.done: Counter[str] = Counter()
        self._stage = stage
        self._chance = chance
        self._kinds = kinds
        self._suffering: set[int] = set()
        self._database_suffers = False

    async def rage(self, seconds: float, victims: list[KnownMachine], *, promotes: bool) -> None:
        """Harms until the time is over and everything has been made good; a third of `victims` stay good."""
        ends_at = time.monotonic() + seconds
        promotes_at = time.monotonic() + seconds / 2 if promotes else ends_at
        under_way: set[asyncio.Task[None]] = set()
        to_turn = len(victims) * 2 // 3
        turns_at = [time.monotonic() + seconds * self._chance.random() for _ in range(to_turn)]
        for at in turns_at:
            under_way.add(asyncio.create_task(self._turn_bad(at, victims)))
        harm: set[asyncio.Task[None]] = set()
        while time.monotonic() < ends_at:
            if time.monotonic() >= promotes_at:
                promotes_at = ends_at
                await asyncio.gather(*harm)
                self.done["promoted"] += 1
                await play_steps([Promoted((Wait(1),))], self._stage, [])
            fault = self._choose()
            if fault is not None:
                harm.add(asyncio.create_task(self._harm(fault)))
            await asyncio.sleep(self._chance.uniform(0.2, 1.5))
        await asyncio.gather(*harm)
        await asyncio.gather(*under_way)

    def _choose(self) -> FaultKind | None:
        kind = self._chance.choice(self._kinds)
        healthy = [one for one in range(len(self._stage.site.processes)) if one not in self._suffering]
        numbers = (self._chance.choice(healthy),) if len(healthy) > 1 else ()
        fault: FaultKind
        if issubclass(kind, _OF_DATABASE):
            if self._database_suffers:
                return None
            if kind is Locked:
                fault = Locked(self._chance.choice(_TABLES))
            elif kind is ClockStep:
                fault = ClockStep(self._chance.uniform(-3600, 3600))
            elif kind is Stopped:
                fault = Stopped(self._chance.choice(("fast", "immediate")))
            else:
                fault = kind()
            return fault
        if not numbers:
            return None
        of_verifiers: dict[type[FaultKind], FaultKind] = {
            Paused: Paused(numbers),
            Killed: Killed(numbers),
            Terminated: Terminated(numbers),
            Silent: Silent(numbers),
        }
        return of_verifiers[kind]

    async def _harm(self, fault: FaultKind) -> None:
        numbers: tuple[int, ...] = getattr(fault, "numbers", ())
        self.done[fault.kind] += 1
        self._suffering |= {*numbers}
        self._database_suffers |= not numbers
        leases = self._chance.uniform(0.1, 3.0)
        await play_steps([During(fault, leases)], self._stage, [])
        self._suffering -= {*numbers}
        self._database_suffers &= bool(numbers)

    async def _turn_bad(self, at: float, victims: list[KnownMachine]) -> None:
        await asyncio.sleep(at - time.monotonic())
        await play_steps([TurnBad(for_one_round=self._chance.random() < 1 / 2)], self._stage, victims)
