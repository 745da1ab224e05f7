import io
import json
import logging
from typing import Any

import pytest

from keylime_tenant.render import Output, agents_table, moment, remarks, state_text, worded_status

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


def test_states_are_told_in_words_and_unknown_ones_as_they_are() -> None:
    assert state_text(9) == "Invalid Quote"
    assert state_text(77) == 77
    assert state_text("Not applicable (Push Mode)") == "Not applicable (Push Mode)"
    assert state_text(None) is None


def test_a_worded_status_keeps_fields_that_we_do_not_know() -> None:
    assert worded_status(STATUS) == {**STATUS, "operational_state": "Invalid Quote"}


def test_remarks_tell_silence_reasons_and_reboots() -> None:
    lines = remarks(STATUS)
    assert lines[0] == "unreachable since 2023-11-14 22:15:00 UTC"
    assert lines[1:-1] == [
        "ima.validation.ima-ng.not_in_allowlist (error)",
        "  path      /root/evil.sh",
        "  entry     41",
        "  the file is not in the runtime policy",
    ]
    assert lines[-1] == "rebooted 2 times"


def test_of_many_findings_the_first_are_shown_and_the_rest_counted() -> None:
    lines = remarks({"last_findings": STATUS["last_findings"] * 8})
    assert lines.count("  entry     41") == 5
    assert lines[-1] == "and 3 more findings: --json shows them"


def test_a_finding_of_another_form_is_shown_as_it_came_and_cannot_steer_the_terminal() -> None:
    assert remarks({"last_findings": [{"why": "\x1b[2J"}]}) == ['{"why": "\\u001b[2J"}']


def test_a_verifier_without_findings_still_gives_its_event_id() -> None:
    assert remarks({"last_event_id": "quote_validation"}) == ["last failure: quote_validation"]


@pytest.mark.parametrize("value", [0, None, -5, "x", 1e300])
def test_a_moment_that_is_none_is_never(value: object) -> None:
    assert moment(value) == "never"


def make_output(*, as_json: bool) -> tuple[Output, io.StringIO, io.StringIO]:
    stdout, stderr = io.StringIO(), io.StringIO()
    return (
        Output(logging.getLogger("keylime.tenant"), as_json=as_json, stdout=stdout, stderr=stderr),
        stdout,
        stderr,
    )


def test_json_mode_prints_exactly_one_document() -> None:
    output, stdout, stderr = make_output(as_json=True)
    output.literal({"noise": 1})
    output.listing("Agent list", {"uuids": [["a"]]})
    output.table(agents_table({"a": STATUS}))
    output.finish()
    assert json.loads(stdout.getvalue()) == {"uuids": [["a"]]}
    assert stderr.getvalue() == ""


def test_without_json_mode_answers_are_python_dictionaries_and_no_table_is_drawn_off_a_terminal() -> None:
    output, stdout, stderr = make_output(as_json=False)
    output.literal({"code": 200, "results": {"name": None}})
    output.table(agents_table({"a": STATUS}))
    output.finish()
    assert stdout.getvalue() == "{'code': 200, 'results': {'name': None}}\n"
    assert stderr.getvalue() == ""


def test_a_terminal_gets_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    output = Output(logging.getLogger("keylime.tenant"), as_json=False, stdout=io.StringIO(), stderr=terminal)
    output.table(agents_table({"node1": STATUS}))
    assert "node1" in terminal.getvalue()
    assert "the file is not in the runtime policy" in terminal.getvalue()
