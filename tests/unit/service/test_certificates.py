"""Certificates in use: taken up when files change, renewed when due, named when they end."""

import asyncio
import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keylime.errors import ConfigError
from keylime.pki.server_names import NameCheck
from keylime.pki.service_certificates import Done, RenewalImpossible
from keylime.pki.tls import TlsFiles, TlsSide
from keylime.service.certificates import CertificateKeeper
from tests.fakes.tls_material import Authority, Issued

AUTHORITY = Authority()
START = datetime.now(UTC)


class Time:
    """Days since the start."""

    def __init__(self) -> None:
        self.days = 0.0

    def now(self) -> datetime:
        return START + timedelta(days=self.days)


def write(directory: Path, name: str, issued: Issued) -> None:
    (directory / f"{name}-cert.crt").write_text(issued.pem)
    key = directory / f"{name}-private.pem"
    key.touch(mode=0o600)
    key.write_bytes(issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    """A server's and a client's certificates that live for a year, and a CA for a month."""
    ca = AUTHORITY.write(tmp_path / "ca.pem")
    sides = []
    for name in ("server", "client"):
        write(tmp_path, name, AUTHORITY.issue(name, days=(-1, 365)))
        certificate, key = tmp_path / f"{name}-cert.crt", tmp_path / f"{name}-private.pem"
        sides.append(
            TlsSide(certificate, key, None, (ca,), True, f"[verifier] {name}_cert", "[verifier] trust")
        )
    return TlsFiles(tmp_path, False, sides[0], sides[1], (), NameCheck.WARN)


class Process:
    """A keeper and what it does."""

    def __init__(
        self, files: TlsFiles, renew: Callable[[], Done] | None = None, *, is_speaker: bool = True
    ) -> None:
        self.time = Time()
        self.taken_up = 0
        self.refusal: ConfigError | None = None
        self.keeper = CertificateKeeper(files, renew=renew, is_speaker=is_speaker, now=self.time.now)
        self.keeper.on_change = self.take_up

    def take_up(self, files: TlsFiles) -> None:
        if self.refusal is not None:
            raise self.refusal
        files.server_context(require_client=False)
        self.taken_up += 1

    def look(self, days: float) -> tuple[str | None, str | None]:
        """What is a problem and what is remarked, after so many days."""
        self.time.days = days
        asyncio.run(self.keeper.look())
        return asyncio.run(self.keeper.problem()), self.keeper.remark()


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno == level]
    caplog.clear()
    return found


def test_what_ends_is_a_remark_first_and_a_problem_then(
    files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(files)
    assert process.look(0) == (None, None)
    assert not messages(caplog, logging.WARNING)
    problem, remark = process.look(25)
    assert problem is None
    assert str(remark).startswith("trusted CA ca.pem ends on ")
    (said,) = messages(caplog, logging.WARNING)
    assert "/ca.pem ends on " in said
    assert "in 4 days; put a new one in its place" in said
    assert str(process.look(31)[0]).startswith("trusted CA ca.pem ended on ")
    (said,) = messages(caplog, logging.ERROR)
    problem, remark = process.look(366)
    assert problem is not None
    assert problem.count("ended on") == 3
    assert not any("/" in text for text in (problem, str(remark)))
    assert len(messages(caplog, logging.ERROR)) == 3


def test_it_is_said_daily_and_by_one_of_several_processes(
    files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    process, silent = Process(files), Process(files, is_speaker=False)
    for days, count in ((25, 1), (25.1, 0), (25.9, 0), (26, 1), (26.5, 0), (27, 1)):
        process.look(days)
        assert len(messages(caplog, logging.WARNING)) == count, days
        silent.look(days)
        assert not messages(caplog, logging.WARNING)
    process.keeper.follow(files)  # a reload
    process.look(27.1)
    assert len(messages(caplog, logging.WARNING)) == 1


def test_a_clock_before_the_beginning_is_said_plainly(
    files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    problem, _ = Process(files).look(-1.5)
    assert "is this machine's clock right?" in str(problem)
    assert any("check the clock of this machine" in said for said in messages(caplog, logging.ERROR))


def test_changed_files_are_taken_up_once_and_what_does_not_fit_is_not(
    files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(files)
    process.look(366)
    new = AUTHORITY.issue("server", days=(-1, 700))
    certificate = files.directory / "server-cert.crt"
    certificate.write_text(new.pem)  # its key is still to come
    caplog.clear()
    problem, _ = process.look(366.1)
    assert "new files cannot be used" in str(problem)
    assert process.taken_up == 0
    assert any("does not belong to key" in said for said in messages(caplog, logging.WARNING))
    process.look(366.2)
    assert not messages(caplog, logging.WARNING)
    write(files.directory, "server", new)
    problem, _ = process.look(366.3)
    assert process.taken_up == 1
    assert "server certificate" not in str(problem)
    process.look(366.4)
    assert process.taken_up == 1


def test_what_is_due_is_renewed_hourly_and_what_cannot_be_is_said(
    files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calls, key_is_there = [], False

    def renew() -> Done:
        calls.append(1)
        if not key_is_there:
            raise RenewalImpossible("run `keylime_ca -c renew -d /d`")
        write(files.directory, "client", AUTHORITY.issue("client", days=(-1, 700)))
        return Done(renewed=("client",))

    process = Process(files, renew)
    _, remark = process.look(1)
    assert "they cannot be renewed" in str(remark)
    assert any("`keylime_ca -c renew" in said for said in messages(caplog, logging.ERROR))
    process.look(1 + 0.5 / 24)
    assert (len(calls), messages(caplog, logging.ERROR)) == (1, [])
    key_is_there = True
    assert process.look(1 + 1.1 / 24) == (None, None)
    assert (len(calls), process.taken_up) == (2, 1)
    assert any("Renewed in" in said for said in messages(caplog, logging.INFO))


def test_files_that_vanish_leave_the_process_with_what_it_has(
    files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(files)
    shutil.move(files.directory / "client-cert.crt", files.directory / "away")
    problem, remark = process.look(1)
    assert problem is None
    assert "new files cannot be used" in str(remark)
    shutil.move(files.directory / "away", files.directory / "client-cert.crt")
    assert process.look(1.1) == (None, None)
