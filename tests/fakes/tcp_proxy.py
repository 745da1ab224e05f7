"""A TCP proxy on loopback whose line can be cut: what is sent then is neither delivered nor refused."""

import asyncio
from typing import Self

from tests.fakes.loopback import LoopbackPort, listen

_LAST_TURNS = 5


class TcpProxy:
    """Forwards to a port. While it is cut, connections stay open and silent; healing resets them."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._open = asyncio.Event()  # of the connections that are made from now on
        self._open.set()
        self._listening: LoopbackPort | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._listening = await listen(self._serve)
        self.port = self._listening.number
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self._listening is not None:
            await self._listening.close()
        for _ in range(_LAST_TURNS):
            # Those to the target are aborted by who forwards to them, and closed in the turn after.
            await asyncio.sleep(0)
            self._reset()
            serving = list(self._serving)
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    def cut(self) -> None:
        """From here on nothing gets through in either direction."""
        self._open.clear()

    def lead_to(self, target_port: int) -> None:
        """From now on it forwards to another port; connections that are there are reset."""
        self._target_port = target_port
        self._reset()

    def go_on_with_new_ones(self) -> None:
        """New connections get through again; those that were there stay open and silent."""
        self._open = asyncio.Event()
        self._open.set()

    def heal(self) -> None:
        """New connections get through again; those that were there are reset."""
        self._reset()
        self._open.set()

    def _reset(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        further: asyncio.StreamWriter | None = None
        is_open = self._open
        try:
            await is_open.wait()
            answers, further = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers.add(further)
            ways = [
                asyncio.create_task(self._forward(reader, further, is_open)),
                asyncio.create_task(self._forward(answers, writer, is_open)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server behind it is down, or the test is over
        finally:
            for end in (writer, further):
                if end is not None:
                    end.transport.abort()
                    self._writers.discard(end)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            await is_open.wait()
            writer.write(data)
            await writer.drain()
