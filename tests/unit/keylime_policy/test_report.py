"""What programs and people read."""

import io
import json
from dataclasses import replace

from keylime.hashes import HashAlgorithm
from keylime_policy.offline import Approval, Conclusion, OfflineJudgement, StoredEvidence, judge
from keylime_policy.report import default_severities, json_report, print_report
from tests.captures import capture
from tests.evidence import policy_of

ONE = capture("direct-efistub")
POLICY = policy_of([ONE.stage("s1-clean").ascii_list])
TAMPERED = judge(
    StoredEvidence(ima_list=ONE.stage("s2-tampered").ascii_list, boot_log=ONE.boot_log),
    Approval(runtime_policy=POLICY),
)
HELLO = next(finding for finding in TAMPERED.findings if finding.path == "/usr/local/bin/hello.sh")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(judgement: OfflineJudgement, stream: io.StringIO) -> str:
    print_report(judgement, default_severities(), stream)
    return stream.getvalue()


def test_the_document_has_every_field_for_programs() -> None:
    document = json.loads(json_report(TAMPERED, default_severities()))
    assert document["verdict"] == "rejected"
    assert document["findings"][0] == {
        "event_id": "ima.validation.ima-ng.runtime_policy_hash",
        "severity": "emergency",
        "path": HELLO.path,
        "log_index": HELLO.log_index,
        "observed": HELLO.observed,
        "expected": list(HELLO.expected),
        "explanation": HELLO.explanation,
        "rule": "digests",
        "policy": f"runtime policy {POLICY.content_hash}",
        "hint": HELLO.hint,
    }
    stage = ONE.stage("s2-tampered")
    assert document["ima"] == {
        "entries": stage.entries,
        "violations": 0,
        "pcr10": {bank: stage.pcrs(bank)[10].hex() for bank in ("sha1", "sha256")},
    }
    assert document["boot"]["pcrs"]["sha256"]["7"] == stage.pcrs("sha256")[7].hex()
    assert "10" not in document["boot"]["pcrs"]["sha256"]
    assert document["not_checked"]


def test_absent_logs_are_null() -> None:
    document = json.loads(json_report(OfflineJudgement(outcome=Conclusion.ACCEPTED), default_severities()))
    assert (document["ima"], document["boot"], document["findings"]) == (None, None, [])


def test_people_get_plain_lines_but_on_a_terminal() -> None:
    plain = printed(TAMPERED, io.StringIO())
    assert "\x1b" not in plain
    for text in (HELLO.event_id, "/usr/local/bin/hello.sh", HELLO.observed, *HELLO.expected, "REJECTED: "):
        assert str(text) in plain
    assert max(map(len, plain.splitlines())) > 100, "lines are not folded where programs may read them"
    shown = printed(TAMPERED, Terminal())
    assert "REJECTED" in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown, "no digest is cut"


def test_names_from_the_evidence_cannot_command_the_terminal() -> None:
    hostile = replace(HELLO, path="/tmp/\x1b[2J[bold]\nx", observed="\x1b]0;")  # noqa: S108 - only a name
    for stream in (io.StringIO(), Terminal()):
        text = printed(replace(TAMPERED, findings=(hostile,)), stream)
        assert "\x1b[2J" not in text
        assert "\x1b]0;" not in text
        assert "[bold]" in text


def test_an_incomplete_judgement_says_why() -> None:
    judgement = OfflineJudgement(outcome=Conclusion.INCOMPLETE, reason="the list is short")
    assert "INCOMPLETE: the list is short" in printed(judgement, io.StringIO())
    assert json.loads(json_report(judgement, default_severities()))["reason"] == "the list is short"


def test_acceptance_without_a_quote_does_not_sound_like_proof() -> None:
    assert "as far as logs alone" in printed(OfflineJudgement(outcome=Conclusion.ACCEPTED), io.StringIO())
    proven = OfflineJudgement(outcome=Conclusion.ACCEPTED, quoted=f"{HashAlgorithm.SHA256.label}:0")
    assert printed(proven, io.StringIO()).endswith("ACCEPTED\n")
