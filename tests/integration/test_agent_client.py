"""The verifier's connections to agents: given up where a shutdown would wait for them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from keylime.appraisal.challenge import Challenge
from keylime.errors import PeerUnreachable
from keylime.pki.tls import pinned_client_context
from keylime_verifier.agent_client import AgentClient
from tests.fakes.eventual import eventually
from tests.fakes.loopback import LoopbackPort, served_by

CHALLENGE = Challenge("nonce", frozenset({10}), 0, wants_public_key=False)


@dataclass
class RustAgent:
    """Answers quotes on kept-alive connections, and stops when nobody is connected any more."""

    boottime: int | None
    port: int = 0
    opened: int = 0
    open_now: int = 0
    is_stopping: bool = False
    server: LoopbackPort | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open_now += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                results: dict[str, object] = {
                    "quote": "r",
                    "hash_alg": "sha256",
                    "enc_alg": "rsa",
                    "sign_alg": "rsassa",
                }
                if self.boottime is not None:
                    results |= {"boottime": self.boottime}
                body = json.dumps({"code": 200, "status": "Success", "results": results}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open_now -= 1
            writer.close()

    async def stop(self) -> None:
        """As actix does it: nobody new is let in, and those who are connected are waited for."""
        self.is_stopping = True
        assert self.server is not None
        self.server.admit_nobody()
        await self.without_connections()

    async def without_connections(self) -> None:
        await eventually(lambda: not self.open_now)


@asynccontextmanager
async def served(boottime: int | None) -> AsyncIterator[RustAgent]:
    agent = RustAgent(boottime)
    async with served_by(agent.serve) as port:
        agent.server = port
        agent.port = port.number
        yield agent


def client_of(agent: RustAgent, interval_s: float) -> AgentClient:
    tls = pinned_client_context(certificate=None, key=None, key_password=None)
    return AgentClient("127.0.0.1", agent.port, None, "2.2", tls, 20.0, interval_s=interval_s)


@pytest.mark.parametrize(
    ("boottime", "interval_s", "connections"),
    [
        (None, 2.0, 1),
        (None, 5.0, 3),
        (None, 60.0, 3),
        (1_790_000_000, 60.0, 1),  # drops what is idle by itself
    ],
)
def test_a_connection_that_a_shutdown_would_wait_for_is_not_kept_for_long(
    boottime: int | None, interval_s: float, connections: int
) -> None:
    async def scenario() -> None:
        async with served(boottime) as agent:
            client = client_of(agent, interval_s)
            for _ in range(3):
                await client.quote(CHALLENGE)
                if connections == 3:
                    await agent.without_connections()
            assert (agent.opened, agent.open_now) == (connections, int(connections == 1))
            await client.close()
            await agent.without_connections()

    asyncio.run(scenario())


def test_a_connection_in_frequent_use_has_an_end_as_well() -> None:
    async def scenario() -> None:
        async with served(None) as agent:
            client = client_of(agent, 2.0)
            await client.quote(CHALLENGE)
            client.life_s = 0.0  # as if ten seconds had gone by
            await client.quote(CHALLENGE)
            await agent.without_connections()
            assert agent.opened == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("life_s", [0.0, 0.3])
def test_an_agent_that_waits_for_its_connections_can_stop_while_it_is_asked_on(life_s: float) -> None:
    async def ask_on(client: AgentClient) -> None:
        while True:
            await client.quote(CHALLENGE)
            await asyncio.sleep(0.01)

    async def scenario() -> None:
        async with served(None) as agent:
            client = client_of(agent, 2.0)
            client.life_s = life_s
            for _ in range(3):
                await client.quote(CHALLENGE)
            stopping = asyncio.create_task(agent.stop())
            with pytest.raises(PeerUnreachable):  # the first round after the end of its connection
                await asyncio.wait_for(ask_on(client), 60)
            assert agent.is_stopping
            await stopping
            await client.close()

    asyncio.run(scenario())


def test_a_probe_tells_whether_something_listens() -> None:
    async def scenario() -> None:
        async with served(None) as agent:
            client = client_of(agent, 2.0)
            await client.probe()
            await agent.without_connections()
        with pytest.raises(PeerUnreachable, match=r"cannot connect to 127\.0\.0\.1 port \d+: .*refused"):
            await client.probe()
        await client.close()

    asyncio.run(scenario())
