"""Whom revocations go to, by the size of the fleet."""

import asyncio
import logging

import pytest

from keylime_verifier.revocations.audience import Audience, Target

ALL = (("agent", "*"), ("zeromq", "tcp://x"), ("webhook", "https://x"))


class Fleet:
    """Counts what it was asked."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked = 0

    async def any_more_than(self, limit: int) -> bool:
        self.asked += 1
        return self.size > limit


def seen(fleet: Fleet, audience: Audience, sizes: tuple[int, ...]) -> list[tuple[Target, ...]]:
    async def play() -> list[tuple[Target, ...]]:
        found = []
        for fleet.size in sizes:
            await audience.look()
            found.append(audience.targets())
        return found

    return asyncio.run(play())


def test_each_agent_is_told_up_to_the_limit_and_beyond_it_only_what_scales(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    fleet = Fleet(0)
    audience = Audience(ALL, 10, fleet.any_more_than)
    assert audience.targets() == ALL
    assert seen(fleet, audience, (10, 11, 12, 10)) == [ALL, ALL[1:], ALL[1:], ALL]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2, "once for each change"
    assert "more than 10 agents (max_agents_notified)" in lines[0]
    assert "over zeromq, webhook only" in lines[0]


def test_who_can_be_told_in_no_other_way_is_told_and_the_log_names_the_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet = Fleet(0)
    assert seen(fleet, Audience(ALL[:1], 10, fleet.any_more_than), (11, 12)) == [ALL[:1]] * 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "enable zeromq or webhook" in record.getMessage()


@pytest.mark.parametrize(("targets", "limit"), [(ALL, 0), (ALL[1:], 10), ((), 10)])
def test_where_there_is_no_choice_nobody_counts(targets: tuple[Target, ...], limit: int) -> None:
    fleet = Fleet(0)
    assert seen(fleet, Audience(targets, limit, fleet.any_more_than), (99,)) == [targets]
    assert fleet.asked == 0
