"""`--follow`: what is shown of an agent, and when it is shown again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from keylime.errors import PeerUnreachable
from keylime_tenant.commands.follow import follow_status
from keylime_tenant.commands.history import history
from keylime_tenant.commands.why import why
from keylime_tenant.errors import CommandFailed
from keylime_tenant.session import Session
from tests.fakes.followed_verifier import BEGUN, GONE, FollowingSession, ToldStreams, answer, event, told

FINDING = {"event_id": "ima.x", "severity": "emergency", "explanation": "no", "path": "/opt/a"}


def status(*findings: object, passes: int = 1, **more: object) -> Any:
    told = {"attestation_status": "FAIL" if findings else "PASS", "last_findings": list(findings)}
    return answer({"operational_state": 9 if findings else 3, "attestation_count": passes, **told, **more})


def kept(*events: object) -> Any:
    return answer({"events": list(events), "more": False})


def followed(following: FollowingSession, command: Callable[[Session], Awaitable[None]]) -> str:
    """The error that it ends with."""

    async def scenario() -> None:
        async with asyncio.timeout(100):
            await command(following.session)

    with pytest.raises(CommandFailed) as ended:
        asyncio.run(scenario())
    return str(ended.value)


def test_reasons_are_shown_again_when_they_are_other_ones_until_the_agent_is_gone() -> None:
    fall = event(8, findings=[FINDING])
    following = FollowingSession(
        ToldStreams([BEGUN, told(8), told(9), told(10), told(11)]),
        statuses=[status(), status(FINDING), status(FINDING), status(), GONE],
        histories=[kept(), kept(fall), kept(fall), kept(fall, event(10))],
    )
    assert "keylime_tenant history -u agent-1" in followed(following, why)
    assert [[one["path"] for one in row["findings"]] for row in following.shown] == [[], ["/opt/a"], []]
    assert [row["since"] for row in following.shown] == [None, 5, None]


def test_a_status_is_shown_again_when_it_says_something_else() -> None:
    following = FollowingSession(
        ToldStreams([BEGUN, told(8)], PeerUnreachable("nobody there"), [BEGUN, told(9)]),
        statuses=[status(), status(passes=2), status(ip="192.0.2.9"), GONE],
    )
    assert "does not have agent agent-1" in followed(following, follow_status)
    assert [row.get("ip") for row in following.shown] == [None, "192.0.2.9"]


def test_where_the_exit_status_is_asked_for_it_ends_with_the_failure() -> None:
    following = FollowingSession(
        ToldStreams([BEGUN, told(8)]), statuses=[status(), status(FINDING)], exit_code=True
    )
    assert followed(following, follow_status).startswith("agent agent-1 failed its attestation")
    assert [row["attestation_status"] for row in following.shown] == ["PASS", "FAIL"]


def test_a_history_ends_with_the_deletion() -> None:
    following = FollowingSession(
        ToldStreams([BEGUN, told(8), told(9, "deleted"), told(10)]), histories=[kept(event(7, "enrolled"))]
    )
    asyncio.run(history(following.session))
    assert [row["kind"] for row in following.shown] == ["enrolled", "state", "deleted"]
