import io
import json
import logging

import pytest

from keylime_tenant.forms import Form
from keylime_tenant.render import Output, OutputHandler
from keylime_tenant.terminal import Terminal


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_output(form: Form, **environ: str) -> tuple[Output, io.StringIO, io.StringIO]:
    stdout, stderr = io.StringIO(), io.StringIO()
    log = logging.getLogger("keylime.tenant")
    return Output(log, form, stdout=stdout, stderr=stderr, environ=environ), stdout, stderr


def on_screen(**environ: str) -> tuple[Output, Screen, Screen]:
    stdout, stderr = Screen(), Screen()
    environ = {"TERM": "xterm", "COLUMNS": "80"} | environ
    log = logging.getLogger("keylime.tenant")
    return Output(log, Form.TABLE, stdout=stdout, stderr=stderr, environ=environ), stdout, stderr


ROWS = [{"agent_id": "a"}, {"agent_id": "b"}]


def report(output: Output) -> None:
    """As a command does."""
    output.literal({"noise": 1})
    output.listing("Agent list", {"uuids": [["a"], ["b"]]}, rows=ROWS, names=["a", "b"])
    output.show(lambda terminal: [terminal.paint("two agents", "good")])
    output.finish()


@pytest.mark.parametrize(
    ("form", "printed"),
    [
        (Form.JSON, '{"uuids": [["a"], ["b"]]}\n'),
        (Form.JSONL, '{"agent_id": "a"}\n{"agent_id": "b"}\n'),
        (Form.NAME, "a\nb\n"),
        (Form.SCRIPT, "{'noise': 1}\n" + '{"uuids": [["a"], ["b"]]}\n'),
        (Form.TABLE, "two agents\n"),
        (Form.WIDE, "two agents\n"),
    ],
)
def test_each_form_prints_its_own_and_nothing_else(form: Form, printed: str) -> None:
    output, stdout, stderr = make_output(form)
    report(output)
    assert (stdout.getvalue(), stderr.getvalue()) == (printed, "")


@pytest.mark.parametrize("form", [Form.JSON, Form.JSONL])
def test_a_failure_without_a_result_is_the_result(form: Form) -> None:
    output, stdout, _ = make_output(form)
    output.failed("no such agent")
    output.finish()
    assert json.loads(stdout.getvalue()) == {"error": "no such agent"}


def test_after_a_failure_no_name_is_told() -> None:
    output, stdout, _ = make_output(Form.NAME)
    output.about("a")
    output.failed("no such agent")
    output.finish()
    assert stdout.getvalue() == ""


def test_scripts_find_what_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    output, stdout, _ = make_output(Form.SCRIPT)
    output.info("quiet %s", 1)
    output.said("Agent %s passed", "a")
    output.waiting("Waiting for %s", "a")
    output.warning("doubtful")
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    told = ["quiet 1", "Agent a passed", "Waiting for a"]
    assert lines == [*(("INFO", text) for text in told), ("WARNING", "doubtful")]
    assert stdout.getvalue() == ""


def test_people_read_results_on_stdout_and_the_rest_on_stderr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    output, stdout, stderr = make_output(Form.TABLE)
    output.info("not for people")
    output.waiting("Waiting for %s", "a")
    output.warning("doubtful: %s", "100%")
    output.said("Agent %s passed", "a")
    assert stdout.getvalue() == "Agent a passed\n"
    assert stderr.getvalue() == "Waiting for a\nwarning: doubtful: 100%\n"
    assert caplog.records == []


def test_what_is_waited_for_passes_on_a_terminal_but_not_when_it_is_longer_than_a_line() -> None:
    output, stdout, stderr = on_screen()
    output.waiting("short")
    output.waiting("x" * 200)
    output.waiting("again")
    output.said("done")
    take_back = "\r\x1b[K"
    assert stderr.getvalue() == f"short{take_back}{'x' * 200}\nagain{take_back}"
    assert stdout.getvalue() == "done\n"


@pytest.mark.parametrize(
    ("environ", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_can_be_declined(environ: dict[str, str], is_coloured: bool) -> None:
    output, stdout, _ = on_screen(**environ)
    report(output)
    assert ("\x1b[32mtwo agents\x1b[0m" in stdout.getvalue()) is is_coloured
    assert "two agents" in stdout.getvalue()


def test_the_width_is_that_of_the_terminal_and_a_file_has_none() -> None:
    assert on_screen(COLUMNS="140")[0].terminal == Terminal(140, has_colours=True)
    assert on_screen(COLUMNS="many", NO_COLOR="1")[0].terminal == Terminal(80)
    assert make_output(Form.WIDE, COLUMNS="140")[0].terminal == Terminal(is_wide=True)


def test_warnings_of_libraries_reach_people_as_ours_do() -> None:
    output, _, stderr = make_output(Form.TABLE)
    handler = OutputHandler(output)
    log = logging.getLogger("tests.library")
    log.addHandler(handler)
    try:
        log.info("small talk")
        log.warning("50%% of %s", "it")
    finally:
        log.removeHandler(handler)
    assert stderr.getvalue() == "warning: 50% of it\n"


def test_what_was_waited_for_is_told_where_the_line_about_it_stays() -> None:
    output, _, stderr = on_screen()
    output.waiting("short")
    output.waited("it is there")
    assert stderr.getvalue() == "short\r\x1b[K"
    output.waiting("x" * 200)
    output.waited("it is there")
    assert stderr.getvalue().endswith("x\nit is there\n")
    with output.held():
        output.waited("it is there")
    assert stderr.getvalue().count("it is there") == 1
