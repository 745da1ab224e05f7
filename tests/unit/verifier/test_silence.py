"""Of which machines it is told that they are silent: of none that could not have been heard."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import pytest
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.engine import URL

from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.verdict import Accepted, AcceptedQuote, Rejected
from keylime.database.engine import DatabaseUnavailable, database_errors
from keylime.database.write_turn import Urgency, WriteTurn
from keylime.findings.finding import Finding
from keylime.findings.severity import SeverityPolicy
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.lifecycle import Cadence
from keylime_verifier.agents.pushing import PushRules
from keylime_verifier.agents.records import AgentRecord, HeldVersions, Progress, PushState, Secrets
from keylime_verifier.agents.shards import MemberId
from keylime_verifier.polling.fencing import Ruling
from keylime_verifier.polling.meter import Meter
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.polling.unwritten import Unwritten
from keylime_verifier.pushing.attestation_store import AttestationStore
from keylime_verifier.pushing.journal import Judged, PushedVerdicts
from keylime_verifier.pushing.session_store import SessionStore
from keylime_verifier.pushing.silence import Silence
from keylime_verifier.pushing.verdict_writes import Change
from tests.fakes.eventual import eventually
from tests.unit.verifier.test_poller import until
from tests.unit.verifier.test_status import ENROLMENT

EPOCH = 1_900_000_000.0
RULES = PushRules(
    Cadence(quote_interval_s=60, retry_interval_s=2, max_retries=3, exponential_backoff=False),
    SeverityPolicy(("info", "emergency"), ({"event_id": ".*", "severity_label": "emergency"},)),
    recovers=True,
)
PAUSE_S = 5.0  # between two looks
ResultT = TypeVar("ResultT")


def passing(number: int) -> AgentRecord:
    enrolment = replace(ENROLMENT, agent_id=AgentId(f"machine-{number:04}"), is_pushing=True)
    progress = Progress(
        supported_version="2.6",
        operational_state=OperationalState.GET_QUOTE,
        attestation_count=1,
        hash_alg="sha256",
        enc_alg="ecc256",
        sign_alg="ecdsa",
    )
    return AgentRecord("first", enrolment, progress, push=PushState(1, int(EPOCH) - 10))


class World:
    """Machines that are silent until it is told, and a journal that takes its time."""

    def __init__(self, silent: int) -> None:
        self.time_s = 1000.0
        self.silent = {record.agent_id: record for record in map(passing, range(silent))}
        self.write_s = 0.0
        self.is_away = False
        self.told: list[int] = []  # how many at a time
        self.looks = 0
        self.watch = Silence(
            MemberId("me"),
            cast(AttestationStore, self),
            cast(SessionStore, self),
            cast(PushedVerdicts, Telling(self)),
            RULES,
            kept_s=3600,
            now=lambda: EPOCH + self.time_s,
            elapsed=lambda: self.time_s,
        )

    async def watches(self, for_s: float) -> None:
        until_s = self.time_s + for_s
        while self.time_s < until_s:
            await self.watch.look()
            self.time_s += PAUSE_S

    # As the stores

    async def overdue(self, _owner: MemberId, _now: float, _judging_s: float) -> list[AgentRecord]:
        self.looks += 1
        if self.is_away:
            raise DatabaseUnavailable("away")
        return list(self.silent.values())

    async def prune(self, _before: float) -> None:
        """Nothing to forget."""

    async def give_up(self, _before: float, _now: float) -> int:
        return 0


class Telling:
    """As the journal."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def overdue(self, silent: Sequence[AgentRecord], _heard_after: float) -> list[Ruling]:
        world = self.world
        world.time_s += world.write_s
        world.told.append(len(silent))
        for record in silent:
            del world.silent[record.agent_id]
        return [Ruling.COUNTS] * len(silent)


def test_those_that_are_silent_are_told_of_together_so_many_at_a_time() -> None:
    world = World(silent=250)
    asyncio.run(world.watches(RULES.longest_pause_s))
    assert world.told == [], "it has not watched for long enough"
    asyncio.run(world.watches(PAUSE_S))
    assert world.told == [100, 100, 50]


def test_when_telling_takes_longer_than_a_pause_the_others_get_the_time_to_be_heard() -> None:
    world = World(silent=250)
    asyncio.run(world.watches(RULES.longest_pause_s))
    world.write_s = PAUSE_S + 1
    asyncio.run(world.watches(PAUSE_S))
    assert world.told == [100], "while that was written, nobody else's attestation was"
    world.write_s = 0.0
    for record in list(world.silent.values())[:140]:
        del world.silent[record.agent_id]  # as they could attest again
    asyncio.run(world.watches(RULES.longest_pause_s))
    assert world.told == [100]
    asyncio.run(world.watches(PAUSE_S))
    assert world.told == [100, 10], "it looked anew"


def test_a_telling_that_takes_no_longer_than_a_pause_interrupts_nothing() -> None:
    world = World(silent=250)
    asyncio.run(world.watches(RULES.longest_pause_s))
    world.write_s = PAUSE_S
    asyncio.run(world.watches(PAUSE_S))
    assert world.told == [100, 100, 50]


def test_after_an_outage_everybody_gets_the_time_to_be_heard() -> None:
    world = World(silent=3)
    asyncio.run(world.watches(RULES.longest_pause_s))
    world.is_away = True
    asyncio.run(world.watches(PAUSE_S))
    world.is_away = False
    asyncio.run(world.watches(RULES.longest_pause_s))
    assert world.told == []
    asyncio.run(world.watches(PAUSE_S))
    assert world.told == [3]


NOTHING = asyncio.Event()
NOTHING.set()


class Writes:
    """A database that notes the changes it is to write, or is away."""

    url = URL.create("sqlite")

    def __init__(self) -> None:
        self.is_away = False
        self.time_s = 0.0
        self.turn = WriteTurn(lambda: self.time_s)
        self.refused: AgentId | None = None  # no row of this agent is taken
        self.defects = 0  # that come, before anything is
        self.held_up: dict[Urgency, asyncio.Event] = {}  # until then
        self.attempts = 0
        self.written: list[list[AgentId]] = []

    async def write(
        self, action: str, work: Callable[[sa.Connection], ResultT], urgency: Urgency = Urgency.USUAL
    ) -> ResultT:
        self.attempts += 1
        if self.is_away:
            raise DatabaseUnavailable("away")
        if self.defects:
            self.defects -= 1
            raise RuntimeError("a defect")
        await self.held_up.get(urgency, NOTHING).wait()
        async with self.turn.taken(urgency):
            changes: Sequence[Change] = cast(Any, work).keywords["take"]()
            ids = [change.after.agent_id for change in changes]
            with database_errors(action):
                if self.refused in ids:
                    raise sa.exc.IntegrityError("INSERT", None, ValueError("not such a value"))
            self.written.append(ids)
        return cast(ResultT, [Ruling.COUNTS] * len(changes))

    async def read(self, action: str, work: Callable[[sa.Connection], ResultT]) -> ResultT:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class Secretless(AgentStore):
    """Agents without keys for their notices."""

    def __init__(self) -> None:
        self.is_away = False

    async def secrets_of(self, agent_id: AgentId) -> Secrets | None:
        if self.is_away:
            raise DatabaseUnavailable("away")
        return Secrets(None, "")


class Desk:
    """A journal over noted writes."""

    def __init__(self) -> None:
        self.database = Writes()
        self.agents = Secretless()
        self.meter = Meter()
        self.on_revocation: Callable[[], None] = lambda: None
        self.journal = PushedVerdicts(
            self.database,
            self.agents,
            RULES,
            token_s=None,
            targets=lambda: [("agent", "*")],
            on_revocation=lambda: self.on_revocation(),
            lateness=Unwritten(),
            meter=self.meter,
            now=lambda: EPOCH,
        )

    def play(self, act: Callable[[], Any]) -> None:
        async def run() -> None:
            writer = asyncio.create_task(self.journal.run())
            try:
                await act()
            finally:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

        asyncio.run(run())


def test_silence_is_written_in_one_transaction() -> None:
    desk = Desk()
    silent = [passing(number) for number in range(100)]

    async def act() -> None:
        assert await desk.journal.overdue(silent, EPOCH) == [Ruling.COUNTS] * 100
        assert desk.database.written == [[record.agent_id for record in silent]]

    desk.play(act)


@pytest.mark.parametrize("where", ["for what is read", "for what is written"])
def test_silence_that_could_not_be_written_is_not_written_later(where: str) -> None:
    desk = Desk()

    async def act() -> None:
        desk.agents.is_away = where == "for what is read"
        desk.database.is_away = where == "for what is written"
        with pytest.raises(DatabaseUnavailable):
            await desk.journal.overdue([passing(1), passing(2)], EPOCH)
        desk.agents.is_away = desk.database.is_away = False
        assert await desk.journal.overdue([passing(3)], EPOCH) == [Ruling.COUNTS]
        assert desk.database.written == [[passing(3).agent_id]]

    desk.play(act)


def failing(number: int) -> Judged:
    finding = Finding("ima.x", {"message": "bad"}, recoverable=True, explanation="bad")
    verdict = Rejected((finding,), Checkpoint.fresh())
    return Judged(record=passing(number), number=2, verdict=verdict, held_to=HeldVersions())


def passed(number: int) -> Judged:
    accepted = AcceptedQuote(hash_alg="sha256", encryption_alg="ecc256", signing_alg="ecdsa")
    verdict = Accepted(Checkpoint.fresh(), accepted)
    return Judged(record=passing(number), number=2, verdict=verdict, held_to=HeldVersions())


def test_failures_go_before_passes_and_all_else_that_waits_to_be_written() -> None:
    desk = Desk()
    written = desk.database.written

    async def somebody_else_writes() -> None:
        async with desk.database.turn.taken():
            written.append([])

    async def act() -> None:
        async with desk.database.turn.taken():
            passes = [asyncio.create_task(desk.journal.judged(passed(number))) for number in (1, 2)]
            await asyncio.sleep(0.01)
            others: list[asyncio.Task[Any]] = [asyncio.create_task(somebody_else_writes())]
            desk.database.time_s += 2.0  # for which the passes have waited
            for number in (3, 4):  # the second comes when a transaction for the first one waits
                others.append(asyncio.create_task(desk.journal.judged(failing(number))))
                await asyncio.sleep(0.01)
        await asyncio.gather(*passes, *others)
        ids = [passing(number).agent_id for number in range(5)]
        assert written == [ids[3:], ids[1:3], []]

    desk.play(act)


def test_a_verdict_that_the_database_refuses_holds_no_other_up() -> None:
    desk = Desk()
    desk.database.refused = passing(2).agent_id

    async def act() -> None:
        judging = (desk.journal.judged(failing(number)) for number in (1, 2, 3))
        first, refused, third = await asyncio.gather(*judging, return_exceptions=True)
        assert (first, third) == (Ruling.COUNTS, Ruling.COUNTS)
        assert isinstance(refused, DatabaseUnavailable)
        assert desk.database.written == [[passing(1).agent_id], [passing(3).agent_id]]

    desk.play(act)


def test_silence_that_the_database_refuses_is_that_of_one_agent(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.database.refused = passing(2).agent_id
    woken: list[None] = []
    desk.on_revocation = lambda: woken.append(None)

    async def act() -> None:
        rulings = await desk.journal.overdue([passing(number) for number in (1, 2, 3)], EPOCH)
        assert rulings == [Ruling.COUNTS] * 2
        assert desk.database.written == [[passing(1).agent_id], [passing(3).agent_id]]
        assert len(woken) == 2, "those that are written are told of"
        (line,) = [one.message for one in caplog.records if "silent" in one.message]
        assert line.startswith(f"agent {passing(2).agent_id}: ")

    desk.play(act)


def test_nobody_is_told_of_as_silent_while_passes_cannot_be_written() -> None:
    desk = Desk()
    passes = desk.database.held_up[Urgency.CAN_WAIT] = asyncio.Event()  # somebody locks a row of one of them

    async def act() -> None:
        loop = asyncio.get_running_loop()
        judging = asyncio.create_task(desk.journal.judged(passed(1)))
        await eventually(lambda: desk.database.attempts == 1)
        assert await desk.journal.overdue([passing(2)], EPOCH) == [Ruling.COUNTS], "no longer than usual"
        late_s = loop.time() + RULES.longest_pause_s / 2 + 1
        loop.time = lambda: late_s  # type: ignore[method-assign]
        with pytest.raises(DatabaseUnavailable, match="passes"):
            await desk.journal.overdue([passing(1)], EPOCH)
        del loop.time
        passes.set()
        assert await judging is Ruling.COUNTS
        assert await desk.journal.overdue([passing(3)], EPOCH) == [Ruling.COUNTS]
        assert desk.database.written == [[passing(number).agent_id] for number in (2, 1, 3)]

    desk.play(act)


def test_a_verdict_that_could_not_be_written_is_though_silence_beside_it_is_not() -> None:
    desk = Desk()

    async def act() -> None:
        desk.database.is_away = True
        judging = asyncio.create_task(desk.journal.judged(failing(1)))
        silence = asyncio.create_task(desk.journal.overdue([passing(2)], EPOCH))
        await until(silence.done)
        assert isinstance(silence.exception(), DatabaseUnavailable)
        assert not judging.done()
        desk.database.is_away = False
        assert await judging is Ruling.COUNTS
        assert desk.database.written == [[passing(1).agent_id]]

    desk.play(act)


def test_a_defect_ends_all_writing_and_what_waits_is_written_when_that_begins_again() -> None:
    desk = Desk()
    desk.database.defects = 1

    async def act() -> None:
        waiting = [asyncio.create_task(desk.journal.judged(judged)) for judged in (failing(1), passed(2))]
        await asyncio.sleep(0)
        before = asyncio.all_tasks()
        with pytest.raises(ExceptionGroup):
            await desk.journal.run()
        assert not asyncio.all_tasks() - before, "nobody goes on beside the one that begins again"
        again = asyncio.create_task(desk.journal.run())
        assert await asyncio.gather(*waiting) == [Ruling.COUNTS] * 2
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        assert sorted(desk.database.written) == [[passing(1).agent_id], [passing(2).agent_id]]

    asyncio.run(act())
