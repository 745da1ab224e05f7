"""What people read about a finding: measured, where, expected, by which rule of which policy, what to do."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.verdict import Rejected
from keylime.findings.explain import joined, log_text, summarise_finding, terminal_lines
from keylime.findings.finding import Finding
from keylime.identifiers import AgentId
from keylime.ima.findings import NOT_IN_ALLOWLIST
from keylime.messages.verifier import FindingSummary
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_verifier.polling.findings_log import log_findings
from tests.appraisal_rounds import Watch
from tests.captures import capture
from tests.evidence import SoftwareMachine, policy_of, reference

BARE = Finding("qoute_validation.no_pubkey", {}, recoverable=False, explanation="no key is known")
FULL = Finding(
    "ima.x",
    {},
    recoverable=True,
    explanation="it is not listed",
    path="/usr/bin/x",
    log_index=7,
    observed="ab",
    expected=("cd", "ef"),
    rule="digests",
    policy="runtime policy 0123456789ab",
    hint="add it",
)
AGENT = AgentId("d432fbb3-d2f1-4a97-9ef7-75bd81c00000")


def test_a_log_line_says_what_where_by_which_rule_and_what_to_do() -> None:
    assert log_text(BARE) == "no key is known"
    assert (
        log_text(FULL) == "it is not listed [entry 7, digests of runtime policy 0123456789ab]; hint: add it"
    )
    assert log_text(FULL, "File not found").startswith("File not found [entry 7, ")


def test_a_terminal_shows_every_field_that_is_known() -> None:
    assert list(terminal_lines(summarise_finding(BARE, "emergency"))) == ["no key is known"]
    assert list(terminal_lines(summarise_finding(FULL, "emergency"))) == [
        "path      /usr/bin/x",
        "entry     7",
        "observed  ab",
        "expected  cd",
        "          ef",
        "rule      digests of runtime policy 0123456789ab",
        "it is not listed",
        "hint: add it",
    ]


def test_of_many_expected_values_the_first_are_shown() -> None:
    many = summarise_finding(replace(FULL, expected=tuple(map(str, range(9)))), "error")
    assert "          and 5 more" in list(terminal_lines(many))


@given(st.text(), st.text())
def test_evidence_cannot_write_lines_of_its_own(path: str, observed: str) -> None:
    finding = replace(FULL, explanation=path, path=path, observed=observed)
    assert log_text(finding).isprintable()
    assert all(line.isprintable() for line in terminal_lines(summarise_finding(finding, "error")))


def test_a_summary_of_an_older_release_is_still_read() -> None:
    old = msgspec.json.decode(
        b'{"event_id":"ima.x","severity":"error","explanation":"why"}', type=FindingSummary
    )
    assert list(terminal_lines(old)) == ["why"]


def test_every_rule_that_a_machine_breaks_names_the_version_of_its_policy() -> None:
    one = capture("direct-efistub")
    policy = policy_of([one.stage("s1-clean").ascii_list])
    machine = SoftwareMachine.of_stage(one.stage("s2-tampered"))
    verdict = Watch(machine, reference(machine.ak.tpm2b_public, runtime_policy=policy)).round()
    assert isinstance(verdict, Rejected)
    assert verdict.findings
    for finding in verdict.findings:
        assert (finding.rule, finding.policy) == ("digests", policy.version)
        assert finding.log_index is not None
        assert finding.hint
    changed = policy_of([one.stage("s1-clean").ascii_list, b""], excludes=["/nowhere"])
    assert changed.version != policy.version


def test_a_tpm_policy_names_its_version_too() -> None:
    policy = TpmPolicy.from_operator('{"15": "00"}')
    (finding,) = policy.evaluate({15: b"\x01"})
    assert (finding.rule, finding.policy) == ("PCR 15", policy.version)
    assert policy.version != TpmPolicy.from_operator('{"15": "01"}').version


def test_the_log_counts_what_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    listed = replace(FULL, event_id=NOT_IN_ALLOWLIST, context={"message": "File not found in allowlist: /x"})
    log_findings(AGENT, Rejected((listed,) * 60, Checkpoint.fresh(), omitted=1000))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("File not found in allowlist: /x [entry 7, digests of runtime policy")
    assert lines[-1] == f"agent {AGENT}: 1010 further findings are left out here"


def unexplained(index: int) -> Finding:
    return Finding(
        f"pcr_validation.unused_pcr_{index}",
        {"message": f"PCR {index}"},
        recoverable=True,
        explanation=f"There is no boot log that would explain PCR {index}.",
        hint="look",
        observed=f"{index:064x}",
    )


def test_equal_findings_about_many_pcrs_are_one_that_names_them_all() -> None:
    of_pcrs = [unexplained(index) for index in (0, 1, 2, 11)]
    first, one = joined([FULL, *of_pcrs])
    assert first == FULL
    assert one.explanation == "There is no boot log that would explain PCR 0, 1, 2, 11."
    assert (one.event_id, one.observed) == ("pcr_validation.unused_pcr_0", None)


def test_findings_that_differ_in_more_than_the_pcr_stay_apart() -> None:
    graver = {"pcr_validation.unused_pcr_2"}
    of_pcrs = [unexplained(index) for index in (0, 1, 2)]
    assert len(list(joined(of_pcrs, lambda finding: finding.event_id in graver))) == 2
    assert len(list(joined([of_pcrs[0], replace(of_pcrs[1], hint="another")]))) == 2
    told_apart = [replace(finding, expected=("00",)) for finding in of_pcrs]
    assert list(joined(told_apart)) == told_apart, "the values that were expected are worth their lines"
    assert list(joined([BARE, BARE])) == [BARE, BARE]
