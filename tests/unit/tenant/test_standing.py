from typing import Any

import pytest

from keylime_tenant.standing import Standing, grouped_findings, remarks, standing_of
from keylime_tenant.told_status import told_status

STATUS: dict[str, Any] = {
    "operational_state": 9,
    "ip": "192.0.2.7",
    "port": 9002,
    "attestation_count": 12,
    "last_successful_attestation": 1_700_000_000,
    "last_event_id": "ima.validation.ima-ng.not_in_allowlist",
    "unreachable_since": 1_700_000_100,
    "reboots": 2,
    "last_findings": [
        {
            "event_id": "ima.validation.ima-ng.not_in_allowlist",
            "severity": "error",
            "explanation": "the file is not in the runtime policy",
            "path": "/root/evil.sh",
            "log_index": 41,
        }
    ],
    "future_field": {"kept": True},
}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"operational_state": 3, "attestation_status": "PASS", "attestation_count": 3}, Standing.ATTESTED),
        ({"operational_state": 3, "attestation_status": "PENDING"}, Standing.PENDING),
        ({"operational_state": 9, "attestation_status": "FAIL"}, Standing.FAILED),
        ({"operational_state": "Invalid Quote"}, Standing.FAILED),
        (
            {"operational_state": 7, "attestation_status": "FAIL", "unreachable_since": 5},
            Standing.UNREACHABLE,
        ),
        ({"operational_state": "Tenant Quote Failed", "attestation_status": "FAIL"}, Standing.STOPPED),
        (
            {"attestation_status": "PASS", "attestation_text": "attested, nothing judged"},
            Standing.UNJUDGED,
        ),
        # Of verifiers that tell no attestation status.
        ({"operational_state": 3, "attestation_count": 0}, Standing.PENDING),
        ({"operational_state": 3, "attestation_count": 9}, Standing.ATTESTED),
        ({}, Standing.PENDING),
    ],
)
def test_how_an_agent_stands(status: dict[str, Any], expected: Standing) -> None:
    assert standing_of(told_status(status)) is expected


def test_remarks_tell_silence_reasons_and_reboots() -> None:
    lines = remarks(told_status(STATUS))
    assert lines[0] == "unreachable since 2023-11-14 22:15:00 UTC"
    assert lines[1:-1] == [
        "ima.validation.ima-ng.not_in_allowlist (error)",
        "  path      /root/evil.sh",
        "  entry     41",
        "  the file is not in the runtime policy",
    ]
    assert lines[-1] == "rebooted 2 times"


def test_l7_remarks_say_first_that_nothing_is_judged() -> None:
    stopped = remarks(told_status({**STATUS, "attestation_text": "stopped by an operator"}))
    assert "stopped by an operator: -c reactivate goes on with it" in stopped
    lines = remarks(told_status({**STATUS, "attestation_text": "attested, nothing judged"}))
    assert lines[0] == "attested, nothing judged: no policy makes a demand of the agent"
    assert remarks(told_status({**STATUS, "attestation_text": "attested"})) == remarks(told_status(STATUS))


def test_of_many_findings_the_first_are_shown_and_the_rest_counted() -> None:
    lines = remarks(told_status({"last_findings": STATUS["last_findings"] * 8}))
    assert lines.count("  entry     41") == 5
    assert lines[-1] == "and 3 more findings: --json shows them"


def test_a_finding_of_another_form_is_shown_as_it_came_and_cannot_steer_the_terminal() -> None:
    findings = [{"why": "\x1b[2J"}]
    assert remarks(told_status({"last_findings": findings})) == ['{"why": "\\u001b[2J"}']
    assert [group.title for group in grouped_findings(findings)] == ['{"why": "\\u001b[2J"}']


def test_a_verifier_without_findings_still_gives_its_event_id() -> None:
    assert remarks(told_status({"last_event_id": "quote_validation"})) == ["last failure: quote_validation"]


def finding(path: str, **others: object) -> dict[str, object]:
    return {
        "event_id": "ima.x",
        "severity": "error",
        "explanation": "not in the policy",
        "hint": "approve it",
        "path": path,
        **others,
    }


def test_findings_of_one_kind_are_told_once_with_all_their_places() -> None:
    one, many = grouped_findings(
        [finding("/a", severity="notice"), finding("/b", log_index=1), finding("/c", log_index=2)]
    )
    assert (one.title, one.places) == ("ima.x (notice)", ())
    assert list(one.common) == ["path      /a", "not in the policy", "hint: approve it"]
    assert many.title == "ima.x (error), 2 times"
    assert [list(place) for place in many.places] == [
        ["path      /b", "entry     1"],
        ["path      /c", "entry     2"],
    ]
    assert list(many.common) == ["not in the policy", "hint: approve it"]


def test_findings_with_other_words_or_remedies_stay_apart() -> None:
    assert len(grouped_findings([finding("/a"), finding("/b", explanation="other words")])) == 2
    assert len(grouped_findings([finding("/a"), finding("/b", hint=None)])) == 2
    (same,) = grouped_findings([finding("/a")] * 3)
    assert same.title == "ima.x (error), 3 times"
    assert "path      /a" in same.common
