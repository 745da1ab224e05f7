"""Certificates of agents that were not renewed in time, and nothing of those that were."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from keylime_registrar.agent_certificates import AgentCertificates
from tests.fakes.tls_material import Authority

AUTHORITY = Authority("agents")
NOW = datetime.now(UTC)


def ending_in(days: int) -> str:
    return AUTHORITY.issue("agent", days=(-1, days)).pem


class Registered:
    """Agents with their certificates."""

    def __init__(self, **certificates: str) -> None:
        self.certificates = {name.replace("_", "-"): pem for name, pem in certificates.items()}

    async def read(self, after: str, limit: int) -> Sequence[tuple[str, str]]:
        found = sorted(item for item in self.certificates.items() if item[0] > after)
        return found[: min(limit, 2)]  # pages of two


def looked(registered: Registered, *, days_later: int = 0) -> tuple[AgentCertificates, list[float]]:
    measured: list[float] = []
    watched = AgentCertificates(
        registered.read, measured.append, now=lambda: NOW + timedelta(days=days_later)
    )
    asyncio.run(watched.look())
    return watched, measured


def test_agents_that_renew_in_time_are_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    watched, measured = looked(Registered(a=ending_in(31), b=ending_in(29), c=ending_in(365), d="disabled"))
    assert watched.remark() is None
    assert len(measured) == 1
    assert abs(measured[0] - (NOW + timedelta(days=29)).timestamp()) < 3600
    assert not caplog.records


def test_those_that_do_not_are_named_in_the_log_and_counted_for_everybody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registered = Registered(**{f"agent_{number}": ending_in(27 - number) for number in range(7)}, other="?")
    watched, _ = looked(registered)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    named = record.getMessage().partition("not renewed: ")[2]
    assert named.startswith("agent-6 (")
    assert ") and 2 more; " in named
    remark = watched.remark()
    assert remark is not None
    assert remark.startswith("those of 7 agents should have been renewed, the first ends on ")
    assert "agent-6" not in remark
    asyncio.run(watched.look())
    assert len(caplog.records) == 1, "once a day"
    registered.certificates.clear()
    asyncio.run(watched.look())
    assert watched.remark() is None


def test_one_that_has_ended_is_said_to_have() -> None:
    watched, measured = looked(Registered(a=ending_in(5)), days_later=6)
    ended = (NOW + timedelta(days=5)).strftime("%Y-%m-%d")
    assert watched.remark() == f"that of an agent should have been renewed, it ended on {ended}: see the log"
    assert len(measured) == 1


def test_without_agents_nothing_ends() -> None:
    watched, measured = looked(Registered())
    assert (watched.remark(), measured) == (None, [0.0])
