"""Machines that attest by themselves, made cheap: HTTP by hand, and many of them in a process of their own.

They sign genuine quotes with a key in memory, and read answers as strictly as agents in the field. Each has
an address of its own on the loopback network, as machines have: a verifier limits the connections of one.
"""

import asyncio
import contextlib
import multiprocessing
import os
import random
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Self

import msgspec

from tests.fakes.attesting_agent import Machine
from tests.fakes.field_push_agent import JSON_API, Answer, FieldPushAgent, Refused
from tests.fakes.software_ak import SoftwareAk

_NICENESS = 5
_OF_A_NETWORK = 200
_LONGEST_PAUSE_S = 2.0


@dataclass
class LeanPushAgent(FieldPushAgent):
    """The agent without a client library: a connection that is kept, requests in one piece."""

    port: int = 0
    number: int = 0
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    _head: bytes = field(default=b"", repr=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), self.limit_s)

    @property
    def address(self) -> str:
        """Where it calls from."""
        network, host = divmod(self.number, _OF_A_NETWORK)
        return f"127.1.{network + 1}.{host + 1}"

    async def _call(self, method: str, path: str, document: object) -> Answer:
        body = msgspec.json.encode(document)
        is_session = path.startswith("/v3.0/sessions")
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            "Accept: */*",
            "User-Agent: keylime-bench",
            f"Content-Type: {'application/json' if is_session else JSON_API}",
            f"Content-Length: {len(body)}",
        ]
        if not is_session:
            lines += [f"X-Request-ID: {random.getrandbits(32):08x}", f"Authorization: Bearer {self.token}"]
        sent = "\r\n".join([*lines, "", ""]).encode() + body
        async with asyncio.timeout(self.limit_s):
            return await self._exchange(sent)

    async def _exchange(self, sent: bytes) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.tls, local_addr=(self.address, 0)
            )
        reader, writer = self._streams
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers.get("Content-Length", "0")))
        if headers.get("Connection") == "close":
            await self.__aexit__()
        return Answer(int(first.split(" ")[1]), headers, body)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Machines to be: `first` and how many more of them, with these files, before a verifier at `port`."""

    first: int
    count: int
    key: SoftwareAk
    files: dict[str, bytes]
    tls: ssl.SSLContext

    def agents(self, port: int) -> list[LeanPushAgent]:
        """All of them, which have measured their files."""
        agents: list[LeanPushAgent] = []
        for number in range(self.first, self.first + self.count):
            machine = Machine(self.key)
            if agents:
                machine.lines, machine.pcr_10 = list(agents[0].machine.lines), agents[0].machine.pcr_10
            else:
                for name, content in self.files.items():
                    machine.measure(name, content)
            agents.append(
                LeanPushAgent(
                    agent_id_of(number),
                    f"https://127.0.0.1:{port}",
                    self.tls,
                    machine,
                    limit_s=60,
                    port=port,
                    number=number,
                )
            )
        return agents


def agent_id_of(number: int) -> str:
    """The id of a machine."""
    return f"{number:08x}-0000-4000-8000-000000000000"


@dataclass(frozen=True, slots=True)
class Pace:
    """When the machines of all processes attest: each once in a period, from `begins` on, evenly spread.

    `begins` is of `time.monotonic`, which all processes share. The first round is for getting to know them.
    """

    begins: float
    period_s: float
    of_all: int
    rounds: int

    def due(self, number: int, of_round: int) -> float:
        """When a machine attests in a round."""
        return self.begins + (of_round + number / self.of_all) * self.period_s


class PusherProcess:
    """A process with a part of the fleet, which yields to the verifier where processors are short."""

    def __init__(self, fleet: Fleet) -> None:
        """Must be made before the event loop of this process."""
        processes = multiprocessing.get_context("fork")
        self._pipe, theirs = processes.Pipe()
        self._process = processes.Process(target=_live, args=(fleet, theirs), daemon=True)
        self._process.start()
        theirs.close()

    async def log_in(self, port: int) -> None:
        """All of its machines get a token from the verifier at `port`."""
        await self._ask(port)

    async def attest(self, pace: Pace) -> tuple[list[float], int]:
        """All attest at their pace: how long each evidence waited for its receipt; how often to try again."""
        took_s, retries = await self._ask(pace)
        return took_s, retries

    async def _ask(self, what: object) -> Any:
        self._pipe.send(what)
        answer = await asyncio.to_thread(self._pipe.recv)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def end(self) -> None:
        """Ends it."""
        self._pipe.close()
        self._process.join(10)


def _live(fleet: Fleet, pipe: Connection) -> None:
    os.nice(_NICENESS)
    asyncio.run(_serve(fleet, pipe))


async def _serve(fleet: Fleet, pipe: Connection) -> None:
    agents: Sequence[LeanPushAgent] = []
    while True:
        try:
            asked = await asyncio.to_thread(pipe.recv)
        except EOFError:
            return
        try:
            if isinstance(asked, Pace):
                pipe.send(await _attest(agents, asked))
            else:
                agents = fleet.agents(asked)
                for agent in agents:
                    await agent.log_in()
                pipe.send(None)
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            pipe.send(f"{type(error).__name__} {error}")


async def _attest(agents: Sequence[LeanPushAgent], pace: Pace) -> tuple[list[float], int]:
    took_s: list[float] = []
    retries = 0

    async def live(agent: LeanPushAgent) -> None:
        nonlocal retries
        for of_round in range(pace.rounds + 1):
            await asyncio.sleep(max(0.0, pace.due(agent.number, of_round) - time.monotonic()))
            while True:
                try:
                    negotiation = await agent.negotiate()
                    began = time.perf_counter()
                    await agent.deliver(negotiation)
                    if of_round:
                        took_s.append(time.perf_counter() - began)
                    break
                except Refused as refused:
                    if refused.answer.code not in (429, 503):
                        raise
                    retries += 1
                    wait_s = float(refused.answer.headers.get("Retry-After", "1"))
                    await asyncio.sleep(min(wait_s, _LONGEST_PAUSE_S))

    await asyncio.gather(*map(live, agents))
    return took_s, retries
