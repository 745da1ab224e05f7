"""What an operator is told of a fall, and what to type next."""

from collections.abc import Mapping
from typing import Any

import pytest

from keylime.messages.history import HistoryEvent
from keylime_tenant.terminal import Terminal
from keylime_tenant.told_status import ToldStatus, told_status
from keylime_tenant.why import case_of, next_commands, why_lines

DIGEST = "ab" * 32
UNLISTED = {
    "event_id": "ima.validation.ima-ng.not_in_allowlist",
    "severity": "emergency",
    "explanation": "/opt/a b was measured, but the runtime policy's digests do not list it",
    "path": "/opt/a b",
    "observed": DIGEST,
    "rule": "digests",
}
CONTRADICTED = UNLISTED | {
    "path": "/opt/signed",
    "explanation": "/opt/signed ...; its signature, by key 00000001, does not fit the file",
}
QUOTE = {
    "event_id": "quote_validation.quote_validation",
    "severity": "emergency",
    "explanation": "wrong nonce",
}
NOW = 2_000_000_000


def status(*findings: Mapping[str, Any], **more: object) -> ToldStatus:
    told = {"attestation_status": "FAIL" if findings else "PASS", "last_findings": list(findings)}
    return told_status({"operational_state": 9 if findings else 3, **told, **more})


def event(number: int, kind: str, **details: object) -> HistoryEvent:
    policy = "runtime/web" if kind.startswith("policy") else None
    return HistoryEvent(
        id=number,
        at=NOW - 1000 + number,
        kind=kind,
        agent_id=None if policy else "a",
        policy=policy,
        actor="'CN=alice' (serial number 7)" if policy else None,
        request_id="r" if policy else None,
        details=details,
    )


HISTORY = [
    event(1, "enrolled", ip="::1", port=9002, runtime_policy="web", mb_policy=None),
    event(2, "state", **{"from": "Start", "to": "Get Quote"}),
    event(3, "state", **{"from": "Get Quote", "to": "Invalid Quote"}, findings=[QUOTE]),
    event(4, "reactivated"),
    event(5, "state", **{"from": "Start", "to": "Get Quote"}),
    event(6, "policy_replaced", was="11", sha256="22"),
    event(7, "rebooted", reboots=1),
    event(
        8, "state", **{"from": "Get Quote", "to": "Invalid Quote"}, findings=[UNLISTED], findings_left_off=3
    ),
]


def test_what_changed_since_it_fell_before_is_told_and_by_whom() -> None:
    case = case_of("a", status(UNLISTED), HISTORY)
    assert case.fall is HISTORY[-1]
    assert [one.id for one in case.before] == [4, 6, 7]
    lines = list(why_lines(case, Terminal(), NOW))
    assert lines[0] == "a  failed"
    assert lines[1].endswith("16 min 32 s ago")
    text = "\n".join(lines)
    for words in (f"observed  {DIGEST}", "CN=alice", "runtime policy web replaced", "and 3 more findings"):
        assert words in text
    assert lines[-1] == "   keylime_tenant approve -u a"


def test_a_fall_that_is_told_again_began_before() -> None:
    again = event(9, "state", **{"from": "Invalid Quote", "to": "Invalid Quote"}, findings=[UNLISTED, QUOTE])
    assert case_of("a", status(UNLISTED, QUOTE), [*HISTORY, again]).fall is HISTORY[-1]
    assert case_of("a", status(), HISTORY).fall is None


def test_an_agent_that_is_not_reached_is_said_to_be_so_before_there_is_a_finding() -> None:
    silent = status(unreachable_since=NOW - 60, ip="192.0.2.7", port=9002)
    lines = list(why_lines(case_of("a", silent, []), Terminal(), NOW))
    assert lines[0] == "a  unreachable"
    assert lines[1].startswith("   the verifier has not reached its agent at 192.0.2.7 port 9002 since ")
    assert "is the machine up" in lines[2]
    assert "no finding" not in "".join(lines)


def test_an_agent_that_was_reactivated_and_fell_again_fell_then() -> None:
    chance = event(9, "reactivated")
    again = event(10, "state", **{"from": "Start", "to": "Invalid Quote"}, findings=[UNLISTED])
    case = case_of("a", status(UNLISTED), [*HISTORY, chance, again])
    assert case.fall is again
    assert list(case.before) == [chance]


@pytest.mark.parametrize(
    ("shown", "commands"),
    [
        (status(), []),
        (status(UNLISTED), ["keylime_tenant diff -u a", "keylime_tenant approve -u a"]),
        (
            status(UNLISTED, CONTRADICTED),
            ["keylime_tenant diff -u a", "keylime_tenant approve -u a --only '/opt/a b'"],
        ),
        (status(CONTRADICTED), []),
        (status(QUOTE), []),
        (
            status({"event_id": "internal.verifier.not_reachable", "severity": "x", "explanation": "x"}),
            ["keylime_tenant reactivate -u a"],
        ),
        (
            status({"event_id": "internal.verifier.wrong_key", "severity": "x", "explanation": "x"}),
            ["keylime_tenant update -u a"],
        ),
        (status(operational_state=10), ["keylime_tenant reactivate -u a"]),
    ],
)
def test_the_next_command_can_be_copied(shown: ToldStatus, commands: list[str]) -> None:
    assert next_commands(case_of("a", shown, [])) == commands
