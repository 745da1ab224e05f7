"""Severity rules: first match of the whole id, irrecoverable always at the top."""

import pytest

from keylime.errors import ConfigError
from keylime.findings.finding import Finding
from keylime.findings.severity import SeverityPolicy

POLICY = SeverityPolicy(
    ["info", "error", "emergency"],
    [
        {"event_id": r"ima\.", "severity_label": "info"},  # matches no whole id
        {"event_id": r"ima\..*", "severity_label": "error"},
        {"event_id": r"pcr.*", "severity_label": "unheard-of"},
    ],
)


def finding(event_id: str, *, recoverable: bool = True) -> Finding:
    return Finding(event_id, {}, recoverable=recoverable, explanation="")


@pytest.mark.parametrize(
    ("event", "recoverable", "label"),
    [
        ("ima.pcr_mismatch", True, "error"),
        ("ima.pcr_mismatch", False, "emergency"),
        ("measured_boot.invalid_pcr_0", True, "emergency"),
        ("pcr_validation.missing_pcrs", True, "emergency"),
    ],
)
def test_the_first_rule_that_matches_the_whole_id_decides(event: str, recoverable: bool, label: str) -> None:
    assert POLICY.severity_of(finding(event, recoverable=recoverable)).label == label


def test_the_first_of_the_gravest_findings_is_named() -> None:
    found = [finding("ima.a"), finding("measured_boot.b"), finding("measured_boot.c")]
    gravest = POLICY.gravest(found)
    assert (gravest.finding.event_id, gravest.severity.rank) == ("measured_boot.b", 2)


@pytest.mark.parametrize(
    ("labels", "rules", "message"),
    [
        ([], [], "severity_labels"),
        (["info"], [{"event_id": "("}], "rule 1"),
        (["info"], [{"event_id": "(", "severity_label": "info"}], "rule 1"),
        (["info"], [{"event_id": "(?a)(?u)", "severity_label": "info"}], "rule 1"),
    ],
)
def test_rules_that_cannot_be_used_are_refused(
    labels: list[str], rules: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SeverityPolicy(labels, rules)
