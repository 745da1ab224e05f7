import base64
import fcntl
import logging
import os
import threading
from pathlib import Path

import pytest

from keylime.measured_boot.user_space_log import MAX_LOG_SIZE, parse_user_space_log
from keylime_agent.os_log import OsLog
from tests.os_logs import os_log, put_together, take_apart

LOG = os_log("sdboot-uki") or b""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tpm2-measure.log"
    path.write_bytes(LOG)
    return path


def sent(log: OsLog) -> bytes | None:
    text = log.read_base64()
    return None if text is None else base64.b64decode(text, validate=True)


def test_the_log_travels_unchanged_and_is_read_anew_for_each_quote(path: Path) -> None:
    log = OsLog(path)
    assert log.open()
    assert sent(log) == LOG
    with path.open("ab") as file:
        file.write(put_together(take_apart(LOG)[-1:]))
    assert sent(log) == LOG + put_together(take_apart(LOG)[-1:])
    log.close()


@pytest.mark.parametrize("content", [None, b"", b"\x1e{"], ids=["missing", "empty", "being begun"])
def test_nothing_is_sent_where_nothing_was_measured_and_nobody_is_alarmed(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    if content is not None:
        path.write_bytes(content)
    log = OsLog(path)
    assert log.open() == (content is not None)
    assert log.read_base64() is None
    assert not caplog.records
    log.close()


def test_a_record_that_is_being_written_waits_for_the_next_quote(path: Path) -> None:
    path.write_bytes(LOG + LOG[:100])
    log = OsLog(path)
    assert sent(log) == LOG
    log.close()


def test_a_log_opened_early_is_read_when_its_path_is_closed_to_us(path: Path) -> None:
    log = OsLog(path)
    assert log.open()
    path.rename(path.with_name("elsewhere"))
    assert sent(log) == LOG
    log.close()


def test_a_log_that_appears_later_or_is_replaced_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = OsLog(path)
    assert not log.open()
    path.write_bytes(LOG)
    assert sent(log) == LOG
    other = tmp_path / "other"
    other.write_bytes(put_together(take_apart(LOG)[:3]))
    other.replace(path)
    assert sent(log) == put_together(take_apart(LOG)[:3])
    log.close()


def test_of_a_log_that_is_too_long_the_records_of_the_boot_are_sent(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(LOG * (MAX_LOG_SIZE // len(LOG) + 1))
    log = OsLog(path)
    for _ in range(2):
        content = sent(log) or b""
        assert MAX_LOG_SIZE - 1000 < len(content) <= MAX_LOG_SIZE
        assert content.startswith(LOG)
        assert not parse_user_space_log(content).is_cut
    assert len(caplog.records) == 1
    assert "its end is not sent" in caplog.text
    log.close()


def test_a_log_that_systemd_marks_as_incomplete_is_told_of_and_sent(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.chmod(0o1600)
    log = OsLog(path)
    assert sent(log) == sent(log) == LOG
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "lacks a record" in caplog.text
    log.close()


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"
    if kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    log = OsLog(path)
    assert not log.open()
    assert log.read_base64() is None
    assert "no regular file" in caplog.text


def test_a_record_that_is_being_made_is_waited_for(path: Path) -> None:
    """Under its lock systemd has extended the PCR already, and has not written it down."""
    log = OsLog(path)
    log.open()
    with path.open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        found: list[bytes | None] = []
        reader = threading.Thread(target=lambda: found.append(sent(log)))
        reader.start()
        writer.write(put_together(take_apart(LOG)[:1]))
        writer.flush()
        fcntl.flock(writer, fcntl.LOCK_UN)
        reader.join()
    assert found == [LOG + put_together(take_apart(LOG)[:1])]
    log.close()


def test_who_never_gives_up_the_lock_is_not_waited_for(path: Path) -> None:
    log = OsLog(path, lock_wait_s=0.05)
    with path.open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert sent(log) == LOG
    log.close()
