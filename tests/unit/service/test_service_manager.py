"""What a service manager is told, heard on a real datagram socket."""

import asyncio
import os
from pathlib import Path

import pytest

from keylime.service.background import accompanied
from keylime.service.service_manager import ServiceManager
from tests.fakes.notify_socket import NotifySocket


def test_messages_are_those_that_systemd_reads(tmp_path: Path) -> None:
    with NotifySocket(tmp_path) as socket:
        manager = ServiceManager.from_environment({"NOTIFY_SOCKET": socket.address})
        manager.status("half way")
        manager.ready("listening\nSTOPPING=1")
        manager.reloading()
        manager.ping()
        manager.stopping()
        socket.until("STOPPING=1")
    reloading = socket.messages.pop(2)
    assert socket.messages == [
        {"STATUS": "half way"},
        {"READY": "1", "STATUS": "listening STOPPING=1"},
        {"WATCHDOG": "1"},
        {"STOPPING": "1", "STATUS": "stopping"},
    ]
    assert (reloading["RELOADING"], int(reloading["MONOTONIC_USEC"]) > 0) == ("1", True)


def test_abstract_sockets_are_reached() -> None:
    with NotifySocket() as socket:
        ServiceManager.from_environment({"NOTIFY_SOCKET": socket.address}).ready("")
        socket.until("READY=1")


@pytest.mark.parametrize("address", ["", "relative/path", "vsock:2:1234"])
def test_without_a_socket_that_can_be_used_nothing_happens(address: str) -> None:
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    manager.ready("x")
    assert manager.ping_interval_s is None


def test_a_socket_that_is_gone_or_full_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = ServiceManager.from_environment({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    for _ in range(3):
        gone.ready("x")
    assert caplog.text.count("the service manager cannot be told anything") == 1
    with NotifySocket(tmp_path) as socket:
        full = ServiceManager.from_environment({"NOTIFY_SOCKET": socket.address})
        for _ in range(5000):
            full.ping()  # returns, although nobody reads
    assert caplog.text.count("the service manager cannot be told anything") == 2


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_pinged_twice_in_its_period(
    tmp_path: Path, environ: dict[str, str], interval_s: float | None
) -> None:
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": str(tmp_path / "x"), **environ})
    assert manager.ping_interval_s == interval_s


def test_the_watchdog_hears_nothing_while_something_vital_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(socket: NotifySocket) -> None:
        is_well, noticed = True, asyncio.Event()

        async def is_alive() -> bool:
            if not is_well:
                noticed.set()
            return is_well

        environ = {"NOTIFY_SOCKET": socket.address, "WATCHDOG_USEC": "40000"}
        async with accompanied(ServiceManager.from_environment(environ).keep_alive(is_alive)):
            await asyncio.to_thread(socket.until, "WATCHDOG=1", count=3)
            is_well = False
            await noticed.wait()
            # What was sent before is read first.
            assert await asyncio.to_thread(socket.falls_silent)
            is_well = True
            await asyncio.to_thread(socket.until, "WATCHDOG=1", count=len(socket.messages) + 1)

    with NotifySocket(tmp_path) as socket:
        asyncio.run(scenario(socket))
    assert "the watchdog is not told" in caplog.text
