"""A year of certificates in half a minute: the clocks of running daemons are set, and nobody is failed."""

import os
import shutil
import signal
import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from keylime.messages.verifier import OperationalState
from keylime.pki.certificates import parse_certificate
from tests.effort import IS_THOROUGH
from tests.lab.calendar import Calendar
from tests.lab.installation import Machine, start_agent
from tests.lab.site import QUICK, Site, errors_of, open_site
from tests.lab.waiting import await_value

pytestmark = pytest.mark.skipif(not IS_THOROUGH, reason="with make test-time and make test-thorough only")


@dataclass(frozen=True)
class Year:
    """A site that attests a machine, and the day that it is for it."""

    site: Site
    machine: Machine
    calendar: Calendar
    first_day: Path  # the certificates as they were then


@pytest.fixture(scope="module")
def year(new_directory: Path, subnets: Iterator[str]) -> Iterator[Year]:
    """On its first day. A few silent seconds would be enough to give an agent up."""
    verifier = {**QUICK.verifier, "num_workers": "2", "max_retries": "12"}
    options = replace(QUICK, verifier=verifier, registrar={"num_workers": "1"})
    calendar = Calendar(new_directory)
    with open_site(new_directory, next(subnets), options, start=False) as site:
        control = site.control
        calendar.follow(control.verifier, control.registrar)
        control.verifier.start().wait_for("Listening on")
        control.registrar.start().wait_for("Listening on")
        machine = site.machine()
        calendar.follow(machine.agent)
        start_agent(control, machine)
        site.add(machine)
        site.await_passes(machine)
        first_day = Path(shutil.copytree(control.node.work_dir / "cv_ca", new_directory / "first-day"))
        yield Year(site, machine, calendar, first_day)


def certificate_of(host: str, port: int) -> tuple[int, datetime]:
    """Serial number and end of what a server shows."""
    shown = parse_certificate(ssl.get_server_certificate((host, port), timeout=20).encode())
    return shown.serial_number, shown.not_valid_after_utc


def until_renewed(year: Year) -> None:
    """All workers of the verifier, and the registrar, show a certificate that lives for another year."""
    host, goal = year.site.control.node.ip, year.calendar.now + timedelta(days=360)

    def are_renewed() -> bool:
        # Each connection is taken by any of the workers.
        shown = [certificate_of(host, 8881) for _ in range(6)] + [certificate_of(host, 8891)]
        return len(set(shown)) == 1 and shown[0][1] > goal

    await_value(are_renewed, "a renewed certificate at all ports")


def assert_nobody_was_failed(year: Year) -> None:
    """No agent has failed, nobody was told that one has, nothing of ours broke."""
    site = year.site
    assert site.record(year.machine)["operational_state"] == OperationalState.GET_QUOTE
    with closing(sqlite3.connect(site.control.node.work_dir / "cv_data.sqlite", timeout=20)) as database:
        assert database.execute("SELECT count(*) FROM revocations").fetchone() == (0,)
    said = site.control.verifier.text()
    assert "stopping polling" not in said
    assert "asked on every" not in said  # what is said of an agent that is given up
    for daemon in (site.control.verifier, site.control.registrar, year.machine.agent):
        assert errors_of(daemon.text()) == []


def readiness(year: Year) -> tuple[int, dict[str, str]]:
    """What the verifier tells anybody."""
    answer = year.site.control.verifier_api(None).request("GET", "/readyz")
    return answer.code, dict(answer.results.get("problems", {}))


def test_a_clock_that_is_a_day_late_is_our_own_defect_and_over_when_it_is_right(year: Year) -> None:
    verifier = year.site.control.verifier
    year.calendar.set(-1)
    await_value(lambda: "clock" in readiness(year)[1].get("certificates", ""), "not ready, and why")
    verifier.wait_for("client-cert.crt is not valid before .* check the clock", limit_s=100)
    os.kill(verifier.pid, signal.SIGHUP)  # else the connection to the agent is kept, and all goes on
    verifier.wait_for("our own defect: .* is not valid before .* check the clock", limit_s=100)
    verifier.wait_for("not ready: certificates: .*clock", limit_s=100)
    since = verifier.mark()
    year.calendar.set(0)
    verifier.wait_for("certificates: well again", since=since, limit_s=100)
    year.site.await_passes(year.machine)
    assert_nobody_was_failed(year)


def test_certificates_are_renewed_while_all_goes_on(year: Year) -> None:
    control = year.site.control
    year.calendar.set(335)
    until_renewed(year)
    year.site.await_passes(year.machine)
    assert control.verifier.text().count("Renewed in") == 1  # by one of the workers
    assert "took up certificates" in control.registrar.text()
    for days in (364, 366):
        year.calendar.set(days)
        year.site.await_passes(year.machine, more=4)
        assert readiness(year) == (200, {})
    assert_nobody_was_failed(year)


def test_daemons_that_slept_until_all_had_ended_renew_it_when_they_start(year: Year) -> None:
    control = year.site.control
    directory = control.node.work_dir / "cv_ca"
    for daemon in (control.verifier, control.registrar):
        assert daemon.stop() == 0
    shutil.rmtree(directory)
    shutil.copytree(year.first_day, directory)
    modes = {path.name: os.stat(path).st_mode for path in directory.iterdir()}
    year.calendar.set(366)
    for daemon in (control.verifier, control.registrar):
        since = daemon.mark()
        daemon.start().wait_for("Listening on", since=since)
    until_renewed(year)
    # A verifier would give up an agent that takes its time to start on a busy machine.
    assert control.verifier.stop() == 0
    assert year.machine.agent.stop() == 0
    start_agent(control, year.machine)  # which has renewed its own, under its key
    since = control.verifier.mark()
    control.verifier.start().wait_for("Listening on", since=since)
    year.site.await_passes(year.machine)
    assert {path.name: os.stat(path).st_mode for path in directory.iterdir()} == modes
    assert_nobody_was_failed(year)
