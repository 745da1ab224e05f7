"""Verifiers under faults, beside somebody who knows the truth of every machine (`tests/truth`).

Each scenario has machines of its own; those of the scenarios before stay, and their promises are checked on.
KEYLIME_FAULTS_SECONDS makes the random mixes longer, KEYLIME_FAULTS_SEED repeats what a run printed.
"""

import asyncio
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.fakes.databases import KINDS, SERVERS, DatabaseServer
from tests.fakes.mariadb import running_mariadb
from tests.fakes.postgresql import running_postgresql
from tests.truth.checker import Bounds
from tests.truth.faults import (
    ClockStep,
    Frozen,
    Full,
    Killed,
    Locked,
    Paused,
    Silent,
    Stopped,
    Terminated,
)
from tests.truth.mixes import Mix
from tests.truth.scenarios import (
    During,
    Promoted,
    PusherTurnsBad,
    Restored,
    Scenario,
    Start,
    Terminate,
    TurnBad,
    UntilFound,
    UntilJudged,
    UntilTakenOver,
    Wait,
    play,
)
from tests.truth.stage import Stage, stage

SECONDS = float(os.environ.get("KEYLIME_FAULTS_SECONDS", "8"))
SEED = int(os.environ.get("KEYLIME_FAULTS_SEED", "0")) or random.randrange(1, 10**6)  # noqa: S311
SHORT = Bounds(lease_s=4.0, interval_s=0.5)
DEFAULTS = Bounds(lease_s=10.0, interval_s=2.0)
BRISK = Bounds(lease_s=2.0, interval_s=0.5)
FOUND_BY_ONE = TurnBad(2, for_one_round=True)
UNWRITTEN = r"ERROR - agent machine-\d+: the verdict Invalid Quote \(ima\."
OTHER_HISTORY = "another history than before"
ON_POSTGRESQL = [
    Scenario(
        "stopped for more than two leases", (During(Stopped(), 2.25, (FOUND_BY_ONE,)),), keeps_owners=True
    ),
    Scenario("frozen for more than a lease", (During(Frozen(), 1.25, (FOUND_BY_ONE,)),), keeps_owners=True),
    Scenario("dead lines", (During(Silent(), 1.25, (PusherTurnsBad(), FOUND_BY_ONE)),), pushers=2),
    Scenario("a locked table", (During(Locked("agents"), 1, (FOUND_BY_ONE,)),)),
    Scenario(
        "a crash of the database",
        (During(Stopped("immediate"), 0.25, (TurnBad(), PusherTurnsBad())),),
        pushers=2,
    ),
    Scenario(
        "a lock holder that stops",
        (During(Paused((0,), holding_locks=True), 0, (TurnBad(), UntilTakenOver(by=2), UntilFound())),),
    ),
    Scenario(
        "the clock goes back while a verifier is killed and another one pauses",
        (
            During(ClockStep(-3600), 0, (TurnBad(),)),
            During(Killed((1,)), 0, (During(Paused((2,)), 0, (UntilTakenOver(by=1), UntilFound())),)),
        ),
    ),
    Scenario(
        "the clock goes on an hour", (During(ClockStep(3600), 0, (TurnBad(), PusherTurnsBad())),), pushers=2
    ),
    Scenario(
        "two of three verifiers pause",
        (During(Paused((0, 1)), 0, (TurnBad(), UntilTakenOver(by=1), UntilFound())),),
    ),
    Scenario(
        "a verdict waits when its verifiers are stopped",
        (During(Locked("agents"), 0.1, (TurnBad(), UntilJudged(), Terminate())), Start()),
        says=UNWRITTEN,
    ),
    Scenario("a restart of everything", (Terminate(), During(Stopped(), 0.1), Start(), TurnBad())),
    Scenario("a standby takes over", (Promoted((TurnBad(), UntilFound())), TurnBad()), says=OTHER_HISTORY),
]
# Its clock and its standbys are no test's to set.
ON_MARIADB = [
    *(one for one in ON_POSTGRESQL if "clock" not in one.name and "standby" not in one.name),
    Scenario(
        "a verifier is killed while another one pauses",
        (
            During(
                Killed((1,)), 0, (During(Paused((2,)), 0, (TurnBad(), UntilTakenOver(by=1), UntilFound())),)
            ),
        ),
    ),
]
ON_SQLITE = [
    Scenario("locked for a lease", (During(Locked(), 1, (FOUND_BY_ONE,)),)),
    Scenario(
        "a verifier pauses", (During(Paused((0,)), 0, (TurnBad(), UntilTakenOver(by=1), UntilFound())),)
    ),
    Scenario("a verifier is killed", (During(Killed((1,)), 0.5, (TurnBad(), PusherTurnsBad())),), pushers=2),
    Scenario("a full disk", (During(Full(), 1, (TurnBad(), PusherTurnsBad())),), pushers=2),
    Scenario(
        "a verdict waits when its verifiers are stopped",
        (During(Locked(), 0.1, (TurnBad(), UntilJudged(), Terminate())), Start()),
        says=UNWRITTEN,
    ),
    Scenario("a restored backup", (Restored((TurnBad(), UntilFound(), Wait(1))),), says=OTHER_HISTORY),
]
WITH_DEFAULTS = Scenario(
    "away for longer than a lease", (During(Stopped(), 1.2, (TurnBad(4, for_one_round=True),)),), 6
)
WITH_WORKERS = Scenario(
    "locked for 14 s", (During(Locked(), 3.5, (TurnBad(6, for_one_round=True),)),), 8, shows_pending=True
)


def sqlite_in(directory: Path) -> str:
    return f"sqlite:///{directory / 'cv.sqlite'}"


@contextmanager
def small_file_system(directory: Path) -> Iterator[Path]:
    """Where a SQLite file can run out of room, if we may mount it; else any directory."""
    place = directory / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "none", str(place)]
    is_mounted = os.getuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0  # noqa: S603
    try:
        yield place
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)  # noqa: S603, S607


class Running:
    """A stage whose loop stands still between scenarios."""

    def __init__(self, runner: asyncio.Runner, made: Stage) -> None:
        self._runner = runner
        self._stage = made

    def play(self, scenario: Scenario) -> None:
        """Fails with every promise that was broken."""
        self._runner.run(play(scenario, self._stage))
        conclude(self._stage, scenario.name)


def conclude(made: Stage, name: str) -> None:
    found, summary = made.news()
    broken = "\n".join(map(str, found))
    print(f"\n[{name}: {summary}]\n{broken}")
    assert not found, broken


@contextmanager
def running_stage(
    directory: Path, database: DatabaseServer | None, bounds: Bounds, count: int
) -> Iterator[Running]:
    home = small_file_system(directory) if database is None else nullcontext(directory)
    with home as place, asyncio.Runner() as runner:
        made = stage(directory, database or sqlite_in(place), bounds, verifiers_count=count)
        running = runner.run(made.__aenter__())
        try:
            yield Running(runner, running)
        finally:
            runner.run(made.__aexit__(None, None, None))


@contextmanager
def three_on_postgresql(paths: pytest.TempPathFactory, bounds: Bounds) -> Iterator[Running]:
    with (
        running_postgresql() as server,
        running_stage(paths.mktemp("three"), server, bounds, 3) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def calm_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with three_on_postgresql(tmp_path_factory, SHORT) as running:
        yield running


@pytest.fixture(scope="module")
def brisk_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with three_on_postgresql(tmp_path_factory, BRISK) as running:
        yield running


@pytest.fixture(scope="module")
def three_on_mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with (
        running_mariadb() as server,
        running_stage(tmp_path_factory.mktemp("three"), server, SHORT, 3) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def two_on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_stage(tmp_path_factory.mktemp("two"), None, SHORT, 2) as running:
        yield running


@pytest.mark.parametrize("scenario", ON_POSTGRESQL, ids=lambda one: one.name.replace(" ", "-"))
@pytest.mark.timeout(600)
def test_promises_hold_on_postgresql(request: pytest.FixtureRequest, scenario: Scenario) -> None:
    # Where nobody may lose a lease, who gets no processor for a while must not either.
    running: Running = request.getfixturevalue("calm_three" if scenario.keeps_owners else "brisk_three")
    running.play(scenario)


@pytest.mark.skipif("mariadb" not in SERVERS, reason="with KEYLIME_TEST_DATABASES only: it takes minutes")
@pytest.mark.parametrize("scenario", ON_MARIADB, ids=lambda one: one.name.replace(" ", "-"))
@pytest.mark.timeout(600)
def test_promises_hold_on_mariadb(three_on_mariadb: Running, scenario: Scenario) -> None:
    three_on_mariadb.play(scenario)


@pytest.mark.parametrize("scenario", ON_SQLITE, ids=lambda one: one.name.replace(" ", "-"))
@pytest.mark.timeout(600)
def test_promises_hold_on_sqlite(two_on_sqlite: Running, scenario: Scenario) -> None:
    two_on_sqlite.play(scenario)


@pytest.mark.timeout(600)
def test_promises_hold_with_the_defaults_when_a_server_is_away(
    tmp_path: Path, server: DatabaseServer
) -> None:
    async def scene() -> None:
        async with stage(tmp_path, server, DEFAULTS, verifiers_count=2) as made:
            await play(WITH_DEFAULTS, made)
            conclude(made, WITH_DEFAULTS.name)

    asyncio.run(scene())


@pytest.mark.timeout(600)
def test_promises_hold_with_two_workers_when_sqlite_is_locked(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path, sqlite_in(tmp_path), SHORT, verifiers_count=1, workers=2) as made:
            await play(WITH_WORKERS, made)
            conclude(made, WITH_WORKERS.name)

    asyncio.run(scene())


@pytest.mark.timeout(600 + 3 * SECONDS)
@pytest.mark.parametrize("database", KINDS)
def test_promises_hold_under_random_faults(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(SEED)  # noqa: S311
    is_sqlite = database == "sqlite"
    print(f"\n[seed {SEED}]")

    async def scene() -> None:
        place = sqlite_in(tmp_path) if is_sqlite else request.getfixturevalue(SERVERS[database])
        kinds = [Killed, Killed, Paused, Paused, Terminated, Locked]
        if not is_sqlite:
            kinds += [Silent, Silent, Stopped, Frozen]
        if database == "postgresql":
            kinds.append(ClockStep)
        async with stage(tmp_path, place, BRISK, verifiers_count=2 if is_sqlite else 3) as made:
            victims = await made.add_machines(max(9, int(SECONDS / 2)))
            victims += await made.add_pushers(3)
            chance.shuffle(victims)
            mix = Mix(made, chance, kinds)
            await mix.rage(SECONDS, victims, promotes=database == "postgresql")
            await made.until_calm()
            conclude(made, f"seed {SEED}, {SECONDS:g} s, {dict(mix.done)}")

    asyncio.run(scene())
