"""A client's connections that end with it.

aiohttp drops those that it keeps. One that is to be closed after an answer waits for the other end's last
word in TLS instead, longer than the event loop lives, and is told of as unclosed in a later test.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.fakes.eventual import eventually


@asynccontextmanager
async def client_session(
    options: Mapping[str, Any] | None = None, **connector: Any
) -> AsyncIterator[aiohttp.ClientSession]:
    """A session with these `options`. All connections of its `connector` are closed at the end."""
    lines: list[socket.socket] = []

    def new_line(about: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, *_ = about
        line = socket.socket(family, kind, protocol)
        lines[:] = [one for one in lines if one.fileno() >= 0] + [line]
        return line

    def cut() -> bool:
        left = [line for line in lines if line.fileno() >= 0]
        for line in left:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        return not left

    made = aiohttp.TCPConnector(socket_factory=new_line, **connector)
    try:
        async with aiohttp.ClientSession(connector=made, **(options or {})) as session:
            yield session
    finally:
        await eventually(cut)
