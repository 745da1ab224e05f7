"""What a daemon tells systemd (sd_notify(3)): ready, reloading, stopping, a line of status, still alive.

One datagram for each message to the socket in NOTIFY_SOCKET. Without that variable nothing happens, and
nothing that goes wrong here disturbs the daemon.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Self, TypeAlias

log = logging.getLogger(__name__)

Send: TypeAlias = Callable[[Sequence[str]], None]

_PINGS_PER_PERIOD = 2  # sd_watchdog_enabled(3)


class ServiceManager:
    """Who started this process and wants to hear of it, if anybody does."""

    def __init__(self, send: Send | None, watchdog_s: float | None) -> None:
        """`send` takes the assignments of a message; `watchdog_s` is the longest silence, None for any."""
        self._send_to = send
        self._watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """The service manager behind NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        address = _address(environ.get("NOTIFY_SOCKET", ""))
        return cls(None, None) if address is None else cls(_Datagrams(address).send, _watchdog_s(environ))

    @property
    def ping_interval_s(self) -> float | None:
        """How often the watchdog wants to hear of us; None when there is none."""
        return None if self._watchdog_s is None else self._watchdog_s / _PINGS_PER_PERIOD

    def ready(self, status: str) -> None:
        """The start, or a reload, is complete."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={microseconds}", "STATUS=reloading")

    def stopping(self) -> None:
        """The daemon is about to end."""
        self._send("STOPPING=1", "STATUS=stopping")

    def status(self, text: str) -> None:
        """A line for `systemctl status`."""
        self._send(f"STATUS={text}")

    async def keep_alive(self, is_alive: Callable[[], Awaitable[bool]]) -> None:
        """Pings the watchdog while `is_alive`, for ever; returns at once when there is none.

        That the event loop turns is what the ping itself shows.
        """
        interval_s = self.ping_interval_s
        while interval_s is not None:
            if await is_alive():
                self.ping()
            else:
                log.error("the watchdog is not told that all is well, because it is not")
            await asyncio.sleep(interval_s)

    def ping(self) -> None:
        """All is well."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if self._send_to is not None:
            self._send_to(assignments)


class _Datagrams:
    def __init__(self, address: str) -> None:
        self._address = address
        self._has_complained = False

    def send(self, assignments: Sequence[str]) -> None:
        # No line of a status may become an assignment of its own.
        message = "\n".join(" ".join(line.splitlines()) for line in assignments).encode("utf-8", "replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(message, self._address)
        except OSError as error:
            if not self._has_complained:
                log.warning("the service manager cannot be told anything: NOTIFY_SOCKET: %s", error.strerror)
            self._has_complained = True


def _address(text: str) -> str | None:
    if text.startswith("@"):  # abstract: without a file
        return "\0" + text[1:]
    if text.startswith("/"):
        return text
    if text:
        log.warning("NOTIFY_SOCKET is neither a path nor an abstract socket; the service manager is not told")
    return None


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    # Without WATCHDOG_PID it is meant for whoever has the variable.
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 20 and int(text) > 0):
        return None
    return int(text) / 1e6
