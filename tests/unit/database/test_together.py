"""Work of several callers in one transaction: who shares it, who hears of what goes wrong, who gives up."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from keylime import patience
from keylime.database.engine import (
    DatabaseUnavailable,
    OutcomeUnknown,
    PartlyDone,
    database_errors,
    is_away,
)
from keylime.database.together import Together
from keylime.database.transactions import open_database
from keylime.errors import KeylimeError

Group = list[int]


class Scripted:
    """Work that answers with ten times what is asked, when it may go on."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.patience: list[float] = []
        self.may_go_on = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.fails: Callable[[Sequence[int]], None] = lambda _: None

    async def work(self, asked: Sequence[int]) -> list[int | Exception]:
        self.groups.append(list(asked))
        self.patience.append(patience.current().left_s)
        self.has_begun.set()
        await self.may_go_on.wait()
        self.fails(asked)
        return [KeylimeError("thirteen") if one == 13 else 10 * one for one in asked]


def scene(act: Callable[[Scripted], Awaitable[None]]) -> None:
    async def run() -> None:
        await act(Scripted())

    asyncio.run(run())


def test_what_comes_meanwhile_is_done_together_and_one_error_is_ones_own() -> None:
    async def act(script: Scripted) -> None:
        together: Together[int, int] = Together("do it", script.work, at_once=4)
        first = asyncio.create_task(together.ask(1))
        await script.has_begun.wait()
        others = [asyncio.create_task(together.ask(number)) for number in (2, 13, 4, 5, 6)]
        await asyncio.sleep(0)
        script.may_go_on.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        assert results[:2] == [10, 20]
        assert isinstance(results[2], KeylimeError)
        assert results[3:] == [40, 50, 60]
        assert script.groups == [[1], [2, 13, 4, 5], [6]]
        assert await together.ask(7) == 70, "it goes on afterwards"

    scene(act)


def test_what_undoes_all_is_found_out_one_by_one() -> None:
    def fail(asked: Sequence[int]) -> None:
        if 3 in asked:
            raise ZeroDivisionError

    async def act(script: Scripted) -> None:
        script.fails = fail
        script.may_go_on.set()
        together: Together[int, int] = Together("do it", script.work, writes=True)
        results = await asyncio.gather(*map(together.ask, (1, 3, 5)), return_exceptions=True)
        assert (results[0], results[2]) == (10, 50)
        assert isinstance(results[1], ZeroDivisionError)
        assert script.groups == [[1, 3, 5], [1], [3], [5]]

    scene(act)


@pytest.mark.parametrize("kind", [DatabaseUnavailable, OutcomeUnknown])
def test_a_database_that_is_away_is_away_for_each_of_them(kind: type[DatabaseUnavailable]) -> None:
    def fail(_asked: Sequence[int]) -> None:
        raise kind("database: cannot do it: no answer")

    async def act(script: Scripted) -> None:
        script.fails = fail
        script.may_go_on.set()
        together: Together[int, int] = Together("do it", script.work, writes=True)
        results = await asyncio.gather(*map(together.ask, (1, 2)), return_exceptions=True)
        assert [type(one) for one in results] == [kind, kind]
        assert results[0] is not results[1]
        assert script.groups == [[1, 2]], "nobody tries it again on his behalf"

    scene(act)


def refused_row() -> DatabaseUnavailable:
    """As a database speaks of a row that it does not take."""
    with pytest.raises(DatabaseUnavailable) as raised, database_errors("do it"):
        raise sa.exc.DataError("INSERT", None, ValueError("value too long"))
    return raised.value


def test_a_row_that_the_database_refuses_is_a_failure_of_its_caller_alone() -> None:
    def fail(asked: Sequence[int]) -> None:
        if 3 in asked:
            raise refused_row()

    async def act(script: Scripted) -> None:
        script.fails = fail
        script.may_go_on.set()
        together: Together[int, int] = Together("do it", script.work, writes=True)
        results = await asyncio.gather(*map(together.ask, (1, 3, 5)), return_exceptions=True)
        assert (results[0], results[2]) == (10, 50)
        assert type(results[1]) is DatabaseUnavailable
        assert script.groups == [[1, 3, 5], [1], [3], [5]]

    scene(act)


def test_what_a_database_refuses_is_told_from_its_absence_by_the_caller_too() -> None:
    async def act(script: Scripted) -> None:
        def fail(_asked: Sequence[int]) -> None:
            raise refused_row()

        script.fails = fail
        script.may_go_on.set()
        together: Together[int, int] = Together("do it", script.work, writes=True)
        for has_changed, kind in ((False, DatabaseUnavailable), (True, PartlyDone)):
            with patience.for_a_caller():
                patience.current().has_changed = has_changed
                with pytest.raises(DatabaseUnavailable) as raised:
                    await together.ask(1)
            assert type(raised.value) is kind
            assert isinstance(raised.value.__cause__, sa.exc.DataError)
            assert not is_away(raised.value)

    scene(act)


def test_what_a_trigger_refuses_is_no_matter_of_one_row() -> None:
    async def act(script: Scripted) -> None:
        engine = sa.create_engine("sqlite://")

        def fail(_asked: Sequence[int]) -> None:
            with database_errors("do it"), engine.begin() as connection:
                connection.exec_driver_sql("CREATE TABLE numbers (number INTEGER)")
                connection.exec_driver_sql(
                    "CREATE TRIGGER no BEFORE INSERT ON numbers BEGIN SELECT RAISE(ABORT, 'not now'); END"
                )
                connection.exec_driver_sql("INSERT INTO numbers VALUES (1)")

        script.fails = fail
        script.may_go_on.set()
        together: Together[int, int] = Together("do it", script.work, writes=True)
        results = await asyncio.gather(*map(together.ask, (1, 2)), return_exceptions=True)
        engine.dispose()
        assert [type(one) for one in results] == [DatabaseUnavailable] * 2
        assert script.groups == [[1, 2]]

    scene(act)


def test_a_database_that_goes_away_while_each_is_tried_is_not_waited_for_by_each() -> None:
    def fail(asked: Sequence[int]) -> None:
        if len(asked) > 1:
            raise refused_row()
        if asked != [1]:
            raise DatabaseUnavailable("database: cannot do it: no answer")

    async def act(script: Scripted) -> None:
        script.fails = fail
        script.may_go_on.set()
        together: Together[int, int] = Together("do it", script.work, writes=True)
        results = await asyncio.gather(*map(together.ask, (1, 3, 5, 7)), return_exceptions=True)
        assert results[0] == 10
        assert [type(one) for one in results[1:]] == [DatabaseUnavailable] * 3
        assert script.groups == [[1, 3, 5, 7], [1], [3]]

    scene(act)


def test_rows_of_one_transaction_that_sqlite_refuses_are_told_from_those_it_takes(tmp_path: Path) -> None:
    number = sa.Column("number", sa.Integer, sa.CheckConstraint("number < 9"))
    table = sa.Table("numbers", sa.MetaData(), number)

    async def act() -> None:
        database = open_database(sa.make_url(f"sqlite:///{tmp_path / 'data.sqlite'}"))
        await database.write("make it", table.metadata.create_all)

        async def insert(asked: Sequence[int]) -> list[int | Exception]:
            rows = [{"number": one} for one in asked]
            await database.write("count", lambda connection: connection.execute(sa.insert(table), rows))
            return list(asked)

        together: Together[int, int] = Together("count", insert, writes=True)
        results = await asyncio.gather(*map(together.ask, (1, 9, 5)), return_exceptions=True)
        stored = await database.read("look", lambda one: one.scalars(sa.select(number)).all())
        await database.close()
        assert (results[0], results[2], list(stored)) == (1, 5, [1, 5])
        assert isinstance(results[1], DatabaseUnavailable)

    asyncio.run(act())


def test_who_gives_up_is_told_what_was_done_and_what_was_not_begun_never_is() -> None:
    async def act(script: Scripted) -> None:
        together: Together[int, int] = Together("do it", script.work, writes=True)

        async def hasty(number: int, *, has_changed: bool = False) -> int:
            with patience.for_a_caller(0.05):
                patience.current().has_changed = has_changed
                return await together.ask(number)

        under_way = asyncio.create_task(hasty(1))
        await script.has_begun.wait()
        waiting = [asyncio.create_task(hasty(2)), asyncio.create_task(hasty(3, has_changed=True))]
        results = await asyncio.gather(under_way, *waiting, return_exceptions=True)
        assert [type(one) for one in results] == [OutcomeUnknown, DatabaseUnavailable, PartlyDone]
        script.may_go_on.set()
        assert await together.ask(4) == 40
        assert script.groups == [[1], [4]]

    scene(act)


def test_a_read_that_is_given_up_did_nothing() -> None:
    async def act(script: Scripted) -> None:
        together: Together[int, int] = Together("look", script.work)
        with patience.for_a_caller(0.05), pytest.raises(DatabaseUnavailable) as raised:
            await together.ask(1)
        assert type(raised.value) is DatabaseUnavailable
        script.may_go_on.set()

    scene(act)


def test_a_write_counts_as_one_of_its_caller_and_ends_before_its_patience() -> None:
    async def act(script: Scripted) -> None:
        script.may_go_on.set()
        together: Together[int, int] = Together("do it", script.work, writes=True)
        with patience.for_a_caller(1.0):
            await together.ask(1)
            assert patience.current().has_changed
        assert script.patience[0] <= 0.9
        with patience.for_long_work(100.0):
            await together.ask(2)
        assert script.patience[1] == patience.CALLERS_S

    scene(act)


def test_a_write_ends_before_the_least_patience_and_a_read_does_not_have_to() -> None:
    async def act(script: Scripted) -> None:
        script.may_go_on.set()
        for together, most_s in (
            (Together("do it", script.work, writes=True), 0.9),
            (Together("look", script.work), None),
        ):
            script.patience.clear()

            async def patient(limit_s: float, together: Together[int, int] = together) -> int:
                with patience.for_a_caller(limit_s):
                    return await together.ask(1)

            await asyncio.gather(patient(2.5), patient(1.0), patient(2.0))
            (limit_s,) = script.patience
            assert limit_s == patience.CALLERS_S if most_s is None else limit_s <= most_s

    scene(act)


def test_who_has_hardly_any_patience_left_takes_none_from_the_others() -> None:
    async def act(script: Scripted) -> None:
        async def slow(asked: Sequence[int]) -> list[int | Exception]:
            script.groups.append(list(asked))
            try:
                async with asyncio.timeout(patience.current().left_s):
                    await asyncio.sleep(0.3)
            except TimeoutError as error:
                raise DatabaseUnavailable("database: cannot do it: no answer") from error
            return list(asked)

        together: Together[int, int] = Together("do it", slow, writes=True)

        async def ask(number: int, limit_s: float) -> int:
            with patience.for_a_caller(limit_s):
                return await together.ask(number)

        asking = (ask(1, 90.0), ask(2, 0.1), ask(3, 60.0), ask(4, 0.2))
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert list(results[0::2]) == [1, 3]
        assert [type(one) for one in results[1::2]] == [DatabaseUnavailable] * 2, "nothing was done"
        assert script.groups == [[2, 4], [1, 3]]

    scene(act)


def test_transactions_begin_apart_and_a_lone_one_does_not_wait() -> None:
    async def act(script: Scripted) -> None:
        script.may_go_on.set()
        together: Together[int, int] = Together("do it", script.work, apart_s=0.2)
        began = asyncio.get_running_loop().time()
        assert await together.ask(1) == 10
        assert await asyncio.gather(*map(together.ask, (2, 3))) == [20, 30]
        assert asyncio.get_running_loop().time() - began >= 0.2
        assert script.groups == [[1], [2, 3]]

    scene(act)


def test_who_is_cancelled_asks_for_nothing_any_more() -> None:
    async def act(script: Scripted) -> None:
        together: Together[int, int] = Together("do it", script.work)
        first = asyncio.create_task(together.ask(1))
        await script.has_begun.wait()
        gone = asyncio.create_task(together.ask(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        script.may_go_on.set()
        assert await first == 10
        assert await together.ask(3) == 30
        assert script.groups == [[1], [3]]

    scene(act)
