"""`--follow`: what is shown of an agent, and when it is shown again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from keylime.errors import KeylimeError, PeerUnreachable
from keylime_tenant.commands.follow import follow_status
from keylime_tenant.commands.history import history
from keylime_tenant.commands.why import why
from keylime_tenant.errors import Unjudged
from keylime_tenant.judgement import await_judgement
from keylime_tenant.session import Session
from tests.fakes.followed_verifier import (
    AGENT,
    BEGUN,
    GONE,
    FollowingSession,
    ToldStreams,
    answer,
    event,
    told,
)

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

    with pytest.raises(KeylimeError) as ended:
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


def test_the_failure_of_an_agent_that_attests_by_itself_is_not_called_get_quote() -> None:
    following = FollowingSession(
        ToldStreams([BEGUN, told(8)]),
        statuses=[status(), status(FINDING, operational_state=3, attestation_mode="push")],
        exit_code=True,
    )
    assert followed(following, follow_status).startswith("agent agent-1 failed its attestation (FAIL): ")


def test_a_history_ends_with_the_deletion() -> None:
    following = FollowingSession(
        ToldStreams([BEGUN, told(8), told(9, "deleted"), told(10)]), histories=[kept(event(7, "enrolled"))]
    )
    asyncio.run(history(following.session))
    assert [row["kind"] for row in following.shown] == ["enrolled", "state", "deleted"]


PUT_OFF = answer(code=503, status="The service is not available, try again later")


def test_a_verifier_that_puts_a_question_off_is_asked_again() -> None:
    following = FollowingSession(
        ToldStreams([BEGUN, told(8)]),
        statuses=[PUT_OFF, PUT_OFF, status(), PUT_OFF, status(FINDING), GONE],
        histories=[kept(), PUT_OFF, kept()],
    )
    # The second reading is put off halfway, and begins again with the status.
    followed(following, why)
    assert [len(row["findings"]) for row in following.shown] == [0]
    assert following.slept == [2.0] * 4
    place, end = "the verifier at https://192.0.2.1:8881", f"{PUT_OFF.status}; asked again every 2 s"
    assert following.said == [
        f"{place} did not tell about agent agent-1: 503 {end}",
        f"{place} answers again",
        f"{place} did not tell about agent agent-1: 503 {end}",
        f"{place} did not tell what happened to agent agent-1: 503 {end}",
    ]


def test_a_history_that_is_put_off_is_asked_for_again() -> None:
    following = FollowingSession(
        ToldStreams([BEGUN, told(9, "deleted")]), histories=[PUT_OFF, kept(event(7, "enrolled"))]
    )
    asyncio.run(history(following.session))
    assert [row["kind"] for row in following.shown] == ["enrolled", "deleted"]


def test_a_verifier_that_puts_its_versions_off_is_asked_for_them_again() -> None:
    older = answer({"supported_versions": ["2.4"], "current_version": "2.4"})
    following = FollowingSession(
        ToldStreams([BEGUN, told(9, "deleted")]), versions=[PUT_OFF, older], histories=[kept()]
    )
    asyncio.run(history(following.session))
    assert following.peer.asked == ["/version", "/version", f"/v2.4/agents/{AGENT}/history"]
    assert following.slept == [2.0]
    following = FollowingSession(
        ToldStreams([BEGUN, told(8)]), versions=[PUT_OFF, older], statuses=[status(), GONE]
    )
    followed(following, follow_status)
    assert [row["attestation_status"] for row in following.shown] == ["PASS"]


def test_a_verifier_that_went_away_before_it_told_its_versions_was_never_there() -> None:
    following = FollowingSession(ToldStreams([BEGUN]), versions=[PUT_OFF, PeerUnreachable("refused")])
    assert "cannot reach the verifier" in followed(following, follow_status)


def test_a_verifier_that_is_away_between_two_readings_is_asked_again() -> None:
    following = FollowingSession(
        ToldStreams([BEGUN, told(8), told(9)]),
        statuses=[status(), PeerUnreachable("refused"), PeerUnreachable("refused"), status(FINDING), GONE],
    )
    assert "does not have agent agent-1" in followed(following, follow_status)
    assert [row["attestation_status"] for row in following.shown] == ["PASS", "FAIL"]
    assert len([line for line in following.said if "refused" in line]) == 1


def test_any_other_refusal_ends_it() -> None:
    following = FollowingSession(
        ToldStreams([BEGUN, told(8)]), statuses=[status(), answer(code=500, status="defect")]
    )
    assert followed(following, follow_status).endswith("did not tell about agent agent-1: 500 defect")


def test_a_verifier_that_was_never_there_is_an_error_as_everywhere() -> None:
    following = FollowingSession(ToldStreams([BEGUN]), versions=[PeerUnreachable("refused")])
    for command in (history, why, follow_status):
        assert "cannot reach the verifier" in followed(following, command)
    assert not following.slept


def test_trouble_is_told_once_until_the_verifier_answers() -> None:
    away = PeerUnreachable("nobody there")
    following = FollowingSession(
        ToldStreams([BEGUN], away, away, [BEGUN], away, [BEGUN, told(9, "deleted")]), histories=[kept()]
    )
    asyncio.run(history(following.session))
    assert [line.partition(";")[0] for line in following.said] == [
        "the connection has ended",
        "nobody there",
        "the verifier at https://192.0.2.1:8881 answers again",
        "the connection has ended",
        "nobody there",
        "the verifier at https://192.0.2.1:8881 answers again",
    ]


def test_who_waits_for_a_verdict_is_not_sent_away_by_a_verifier_with_too_much_to_do() -> None:
    following = FollowingSession(ToldStreams(), statuses=[PUT_OFF, status()], wait=60.0)
    asyncio.run(await_judgement(following.session, AGENT))
    assert following.slept == [0.25]


def test_nobody_waits_longer_than_he_said() -> None:
    following = FollowingSession(ToldStreams(), statuses=[PUT_OFF], wait=0.0)
    with pytest.raises(Unjudged):
        asyncio.run(await_judgement(following.session, AGENT))
