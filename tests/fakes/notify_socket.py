"""The service manager's end of sd_notify: a real datagram socket that keeps what it hears."""

import secrets
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_LIMIT_S = 100.0


class NotifySocket:
    """Listens at a path in `directory`, or without one at an abstract address."""

    def __init__(self, directory: Path | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.messages: list[dict[str, str]] = []
        if directory is None:
            self.address = f"@keylime-test-{secrets.token_hex(8)}"
            self._socket.bind("\0" + self.address[1:])
        else:
            self.address = str(directory / "notify")
            self._socket.bind(self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def until(self, assignment: str, *, count: int = 1, limit_s: float = _LIMIT_S) -> dict[str, str]:
        """Message number `count` of all so far that has `assignment`, such as "READY=1"."""
        name, _, value = assignment.partition("=")
        deadline = time.monotonic() + limit_s
        while len(found := [message for message in self.messages if message.get(name) == value]) < count:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self._take()
            except TimeoutError as error:
                raise TimeoutError(f"no {assignment} among {self.messages}") from error
        return found[count - 1]

    def falls_silent(self, *, for_s: float = 0.3, limit_s: float = 5.0) -> bool:
        """Whether within the limit there comes a time when nothing more is heard for so long."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            self._socket.settimeout(for_s)
            try:
                self._take()
            except TimeoutError:
                return True
        return False

    def _take(self) -> None:
        text = self._socket.recv(4096).decode()
        self.messages.append(dict(line.split("=", 1) for line in text.splitlines()))
