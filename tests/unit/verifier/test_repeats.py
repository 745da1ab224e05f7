import asyncio
from collections.abc import Iterable
from typing import cast

from keylime.database.engine import DatabaseUnavailable
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.broker_process import BrokerProcess
from keylime_verifier.revocations.repeats import Repeats

OVER = SignedRevocation("over", "")


class Broker:
    """What is withdrawn from it."""

    def __init__(self) -> None:
        self.has_recent = True
        self.withdrawn: list[SignedRevocation] = []
        self.news = asyncio.Event()

    async def withdraw(self, over: Iterable[SignedRevocation]) -> None:
        self.withdrawn.extend(over)
        self.news.set()


class Table:
    """What is over; away as often as it is told."""

    def __init__(self, away: int = 0) -> None:
        self.asked = 0
        self._away = away

    async def over(self) -> list[SignedRevocation]:
        self.asked += 1
        if self.asked <= self._away:
            raise DatabaseUnavailable("away")
        return [OVER]


def test_nobody_is_asked_while_there_is_nothing_to_repeat() -> None:
    async def scenario() -> int:
        table, broker = Table(), Broker()
        repeats = Repeats(table.over)
        await repeats.check()
        repeats.broker = cast(BrokerProcess, broker)
        broker.has_recent = False
        await repeats.check()
        return table.asked

    assert asyncio.run(scenario()) == 0


def test_what_is_over_is_withdrawn_when_something_may_have_changed_and_the_database_is_back() -> None:
    async def scenario() -> tuple[int, list[SignedRevocation]]:
        table, broker = Table(away=1), Broker()
        repeats = Repeats(table.over, rest_s=0.0)
        repeats.broker = cast(BrokerProcess, broker)
        loop = asyncio.create_task(repeats.run())
        repeats.look()
        await asyncio.wait_for(broker.news.wait(), 60)
        loop.cancel()
        return table.asked, broker.withdrawn

    assert asyncio.run(scenario()) == (2, [OVER])
