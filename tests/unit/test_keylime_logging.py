import io
import json
import logging
import os
import re
from collections.abc import Iterator
from contextvars import copy_context
from datetime import datetime
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime import request_id
from keylime.errors import ConfigError
from keylime.keylime_logging import init_logging, setup
from keylime.log_lines import LineFormatter

_PACKAGED = Path(__file__).parents[2] / "config"
_SHAPE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} - (\S+) - ([A-Z]+) - (.*)")


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """A stream to log to; afterwards every logger is as before."""
    root = logging.getLogger()
    known = [
        root,
        *(found for found in root.manager.loggerDict.values() if isinstance(found, logging.Logger)),
    ]
    levels = {found: found.level for found in known}
    handlers = list(root.handlers)
    yield io.StringIO()
    root.handlers[:] = handlers
    for found in root.manager.loggerDict.values():
        if isinstance(found, logging.Logger):
            found.setLevel(levels.get(found, logging.NOTSET))
    root.setLevel(levels[root])


def _setup(
    output: io.StringIO, directory: Path, text: str = "", environ: dict[str, str] | None = None
) -> logging.Logger:
    if text:
        (directory / "logging.conf").write_text(text)
    return setup("verifier", environ or {}, stream=output, etc=directory, usr_etc=directory / "none")


def _lines(output: io.StringIO) -> list[tuple[str, ...]]:
    matches = (_SHAPE.fullmatch(line) for line in output.getvalue().splitlines())
    return [match.groups() if match else ("?",) for match in matches]


def test_lines_have_the_shape_that_operators_search_for(output: io.StringIO, tmp_path: Path) -> None:
    _setup(output, tmp_path).info("started on port %d", 8881)
    init_logging("ima").error("IMA ERRORS: Some entries couldn't be validated.")
    assert _lines(output) == [
        ("keylime.verifier", "INFO", "started on port 8881"),
        ("keylime.ima", "ERROR", "IMA ERRORS: Some entries couldn't be validated."),
    ]


def test_the_packaged_file_gives_the_same_as_none(output: io.StringIO, tmp_path: Path) -> None:
    _setup(output, tmp_path, (_PACKAGED / "logging.conf").read_text()).info("started")
    assert _lines(output) == [("keylime.verifier", "INFO", "started")]


def test_a_file_of_the_standard_librarys_format_is_understood(output: io.StringIO, tmp_path: Path) -> None:
    text = """
[logging]
version = 2.6
[loggers]
keys = root,keylime
[handlers]
keys = consoleHandler
[formatters]
keys = formatter
[formatter_formatter]
format = %(levelname)s %(name)s %(message)s %(reqidf)s
datefmt = %Y
[logger_root]
level = ERROR
handlers = consoleHandler
[handler_consoleHandler]
class = StreamHandler
level = DEBUG
formatter = formatter
args = (sys.stdout,)
[logger_keylime]
level = DEBUG
qualname = keylime
handlers =
[logger_web]
level = WARNING
qualname = keylime.web
"""
    _setup(output, tmp_path, text).debug("seen")
    init_logging("web").info("not seen")
    logging.getLogger("other").warning("not seen")
    logging.getLogger("keylime_verifier.polling.poller").debug("seen too")
    assert (
        output.getvalue() == "DEBUG keylime.verifier seen \nDEBUG keylime_verifier.polling.poller seen too \n"
    )


def test_the_handlers_level_bounds_all_loggers(output: io.StringIO, tmp_path: Path) -> None:
    log = _setup(output, tmp_path, "[handler_consoleHandler]\nlevel = ERROR\n")
    log.warning("not seen")
    log.error("seen")
    assert _lines(output) == [("keylime.verifier", "ERROR", "seen")]


def test_the_environment_sets_levels(output: io.StringIO, tmp_path: Path) -> None:
    _setup(output, tmp_path, environ={"KEYLIME_LOGGING_LOGGER_KEYLIME_LEVEL": "DEBUG"}).debug("seen")
    assert _lines(output) == [("keylime.verifier", "DEBUG", "seen")]


def test_setting_up_twice_does_not_double_lines(output: io.StringIO, tmp_path: Path) -> None:
    _setup(output, tmp_path)
    _setup(output, tmp_path).info("once")
    assert len(_lines(output)) == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[logger_keylime]\nlevel = LOUD\n", "LOUD"),
        ("[logger_x]\nlevel = LOUD\n", r"\[logger_x\]"),
        ("[formatter_formatter]\nformat = %(nosuch)s\n", "nosuch"),
        ("[formatter_formatter]\nformat = plain\n", "format"),
    ],
)
def test_what_cannot_be_used_is_refused(output: io.StringIO, tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        _setup(output, tmp_path, text)


def test_unknown_options_are_reported_in_the_log(output: io.StringIO, tmp_path: Path) -> None:
    _setup(output, tmp_path, "[logger_root]\nlevle = INFO\n")
    assert _lines(output)[0][:2] == ("keylime.config", "WARNING")
    assert 'did you mean "level"?' in _lines(output)[0][2]


def test_a_peers_text_cannot_start_a_line_or_move_the_cursor(output: io.StringIO, tmp_path: Path) -> None:
    _setup(output, tmp_path).warning(
        "agent %s", "x\n2026-01-01 00:00:00.000 - keylime.ima - INFO - ok\x1b[2K\x9b\r\u2028"
    )
    expected = r"agent x\n2026-01-01 00:00:00.000 - keylime.ima - INFO - ok\x1b[2K\x9b\r\u2028"
    assert _lines(output) == [("keylime.verifier", "WARNING", expected)]


def test_tracebacks_keep_their_lines_and_none_looks_like_a_message(
    output: io.StringIO, tmp_path: Path
) -> None:
    log = _setup(output, tmp_path)
    try:
        raise ValueError("bad\n2026-01-01 00:00:00.000 - keylime.ima - INFO - all is well\x1b[1m")
    except ValueError:
        log.exception("poll failed")
    first, *rest = output.getvalue().splitlines()
    assert first.endswith("keylime.verifier - ERROR - poll failed")
    assert len(rest) > 3
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in output.getvalue()


def test_what_is_about_a_request_says_so_at_its_end_or_where_the_format_has_it(
    output: io.StringIO, tmp_path: Path
) -> None:
    def told(text: str) -> str:
        output.seek(0)
        output.truncate()
        _setup(output, tmp_path, text).info("stored")
        return output.getvalue()

    def handled() -> list[str]:
        request_id.handle("abc_1")
        shapes = ("%(message)s", "%(reqidf)s %(message)s", "%(reqid)s|%(request_id)s|%(message)s")
        return [told(f"[formatter_formatter]\nformat = {shape}\n") for shape in shapes] + [
            told("[formatter_formatter]\noutput = json\n")
        ]

    *lines, document = copy_context().run(handled)
    assert lines == ["stored (reqid=abc_1)\n", "(reqid=abc_1) stored\n", "abc_1|abc_1|stored\n"]
    assert json.loads(document)["request_id"] == "abc_1"
    assert told("[formatter_formatter]\nformat = %(message)s\n") == "stored\n"
    assert "request_id" not in json.loads(told("[formatter_formatter]\noutput = json\n"))


@given(st.text())
def test_any_message_is_one_line_of_printable_text(message: str) -> None:
    record = logging.LogRecord("keylime", logging.INFO, "", 1, "%s", (message,), None)
    line = LineFormatter("%(message)s").format(record)
    assert len(line.splitlines()) <= 1
    assert line.encode("utf-8").isascii() or all(
        ord(character) > 0x9F or 0x20 <= ord(character) < 0x7F for character in line
    )


def test_the_public_helper_works_in_a_process_without_logging(
    output: io.StringIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    init_logging("local_action_rm_ssh").info("A node in the network has been compromised: %s", "10.0.0.1")
    assert capsys.readouterr().out.endswith(
        "keylime.local_action_rm_ssh - INFO - A node in the network has been compromised: 10.0.0.1\n"
    )


def test_another_set_up_takes_back_the_levels_of_loggers_that_it_no_longer_names(
    output: io.StringIO, tmp_path: Path
) -> None:
    _setup(output, tmp_path, "[logger_noisy]\nlevel = DEBUG\n")
    noisy = logging.getLogger("noisy")
    assert noisy.isEnabledFor(logging.DEBUG)
    _setup(output, tmp_path, "[logger_keylime]\nlevel = WARNING\n")
    assert not noisy.isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("keylime.x").isEnabledFor(logging.INFO)


def test_a_file_that_cannot_be_used_leaves_the_former_set_up(output: io.StringIO, tmp_path: Path) -> None:
    _setup(output, tmp_path, "[logger_keylime]\nlevel = DEBUG\n")
    with pytest.raises(ConfigError):
        _setup(output, tmp_path, "[logger_keylime]\nlevel = LOUD\n")
    logging.getLogger("keylime.x").debug("still here")
    assert output.getvalue().count("still here") == 1


def _setup_for_journal(
    path: Path, directory: Path, text: str = "", *, is_journal: bool = True
) -> tuple[logging.Logger, TextIO]:
    """Logging to a file that JOURNAL_STREAM names, as systemd does with the socket of the journal."""
    stream = path.open("w")
    status = os.fstat(stream.fileno())
    shown = f"{status.st_dev}:{status.st_ino if is_journal else status.st_ino + 1}"
    if text:
        (directory / "logging.conf").write_text(text)
    environ = {"JOURNAL_STREAM": shown}
    return setup("verifier", environ, stream=stream, etc=directory, usr_etc=directory / "none"), stream


def test_the_journal_gets_priorities_and_puts_the_only_time_stamp(
    output: io.StringIO, tmp_path: Path
) -> None:
    log, stream = _setup_for_journal(tmp_path / "journal", tmp_path)
    with stream:
        log.info("up")
        log.warning("low")
        log.error("bad")
        log.critical("worse")
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            log.exception("a defect")
    lines = (tmp_path / "journal").read_text().splitlines()
    assert lines[:4] == [
        "<6>keylime.verifier - INFO - up",
        "<4>keylime.verifier - WARNING - low",
        "<3>keylime.verifier - ERROR - bad",
        "<2>keylime.verifier - CRITICAL - worse",
    ]
    assert len(lines) > 6
    assert all(line.startswith("<3>") for line in lines[4:]), "every line is an entry of its own there"


def test_a_stream_that_is_not_the_journals_is_left_alone(output: io.StringIO, tmp_path: Path) -> None:
    log, stream = _setup_for_journal(tmp_path / "file", tmp_path, is_journal=False)
    with stream:
        log.info("up")
    assert _SHAPE.fullmatch((tmp_path / "file").read_text().rstrip())


def test_a_shape_of_the_operators_own_stays_in_the_journal(output: io.StringIO, tmp_path: Path) -> None:
    text = "[formatter_formatter]\nformat = [%(levelname)s] %(message)s\n"
    log, stream = _setup_for_journal(tmp_path / "journal", tmp_path, text)
    with stream:
        log.info("up")
    assert (tmp_path / "journal").read_text() == "<6>[INFO] up\n"


def test_lines_of_json_on_request(output: io.StringIO, tmp_path: Path) -> None:
    log = _setup(output, tmp_path, "[formatter_formatter]\noutput = json\n")
    log.warning("from a peer: %s", "a\nb")
    try:
        raise ValueError("inner")
    except ValueError:
        log.exception("a defect")
    first, second = (json.loads(line) for line in output.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == (
        "WARNING",
        "keylime.verifier",
        "from a peer: a\nb",
    )
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert "ValueError: inner" in second["traceback"]


def test_another_kind_of_output_is_refused(output: io.StringIO, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="output"):
        _setup(output, tmp_path, "[formatter_formatter]\noutput = xml\n")
