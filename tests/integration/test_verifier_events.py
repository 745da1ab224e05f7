"""`GET /events`: followed over several verifiers of one database, and over HTTPS."""

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keylime.database.servers import Sessions
from keylime.database.transactions import Database
from keylime.identifiers import AgentId
from keylime_verifier.agents.events import EventKind, Occurrence
from keylime_verifier.api.event_streams import EventStreams
from keylime_verifier.database.changes import ChangeFeed, Topic
from keylime_verifier.database.history import History, new_token, write_events
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.client_session import client_session
from tests.fakes.databases import KINDS, SERVERS, DatabaseServer
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import RunningVerifier, running_verifier, verifier_authority
from tests.fakes.statements import opened
from tests.fakes.tls_material import client_context
from tests.fakes.webhook_receiver import WebhookReceiver
from tests.integration.test_verifier_history import history

_WRITERS, _EACH = 3, 20
_LIMIT_S = 100.0


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'events.sqlite'}"
    server: DatabaseServer = request.getfixturevalue(SERVERS[request.param])
    return server.new_database()


@contextlib.asynccontextmanager
async def process(url: str) -> AsyncIterator[tuple[Database, EventStreams]]:
    """What a verifier has of the events, with a database of its own."""
    database = opened(url)
    streams = EventStreams(History(database, 0))
    topics = {topic: streams.look if topic is Topic.EVENTS else _nothing for topic in Topic}
    changes = asyncio.create_task(ChangeFeed(database, topics, Sessions.of_this_process("test")).run())
    try:
        yield database, streams
    finally:
        changes.cancel()
        await asyncio.gather(changes, return_exceptions=True)
        await database.close()


def _nothing() -> None:
    pass


def test_who_reconnects_to_another_verifier_misses_nothing_and_gets_nothing_twice(url: str) -> None:
    async def act(_database: Database) -> None:
        async with process(url) as (first, one), process(url) as (second, other):

            async def write(database: Database, name: str) -> None:
                for _ in range(_EACH):
                    told = [Occurrence(token=new_token(), kind=EventKind.STATE, agent_id=AgentId(name))]
                    await database.write("test", functools.partial(write_events, what=told))

            writers = asyncio.gather(
                *(write((first, second)[number % 2], f"agent-{number}") for number in range(_WRITERS))
            )
            seen: list[int] = []
            async with asyncio.timeout(_LIMIT_S):
                for turn in range(6):
                    parts = await (one, other)[turn % 2].follow(seen[-1] if seen else 0, None)
                    await _read(parts, seen, _WRITERS * _EACH // 6)
                await writers
            assert seen == list(range(1, _WRITERS * _EACH + 1))

    history(url, act)


async def _read(parts: AsyncGenerator[bytes, None], seen: list[int], count: int) -> None:
    async with contextlib.aclosing(parts):
        async for part in parts:
            if b"data: " in part:
                seen.append(json.loads(part.partition(b"data: ")[2])["id"])
                count -= 1
            if not count:
                return


class Follower:
    """Reads a stream over HTTPS."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of this kind."""
        async with asyncio.timeout(_LIMIT_S):
            async for line in self.response.content:
                if line.startswith(b"data: "):
                    event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                    if event["kind"] == kind:
                        return event
        raise AssertionError(f"the stream ended without {kind}")


@contextlib.asynccontextmanager
async def following(verifier: RunningVerifier, query: str = "", **headers: str) -> AsyncIterator[Follower]:
    url = f"https://127.0.0.1:{verifier.port}/v2.6/events{query}"
    context = verifier.administrators
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with verifier.session.get(url, ssl=context, headers=names) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield Follower(response)


def test_administrators_follow_a_verifier_until_it_ends(tmp_path: Path) -> None:
    async def play() -> None:
        async with contextlib.AsyncExitStack() as last:
            async with (
                AttestingAgent("agent-1", verifier_authority()) as agent,
                WebhookReceiver(None) as receiver,
                running_verifier(tmp_path, _elsewhere(receiver)) as verifier,
            ):
                nobody = client_context(verifier_authority())
                assert (await verifier.call("GET", "/v2.6/events", nobody)).code == 403
                for query in ("after=x", "after=-1", f"after={1 << 63}", "agent_id=a/b"):
                    assert (await verifier.admin("GET", f"/v2.6/events?{query}")).code == 400
                async with following(verifier) as follower:
                    await verifier.add(agent)
                    enrolled = await follower.until("enrolled")
                    assert enrolled["actor"].startswith("'CN=operator'")
                agent.tamper("/usr/bin/backdoor")
                async with following(verifier, "?after=0", Last_Event_ID=str(enrolled["id"])) as follower:
                    state = await follower.until("state")
                    assert state["id"] == enrolled["id"] + 1
                    while not state["details"].get("findings"):
                        state = await follower.until("state")
                    assert state["details"]["revocation"]
                    assert verifier.verifier is not None
                    verifier.verifier.reload(_environ(tmp_path) | _elsewhere(receiver))
                    with pytest.raises(AssertionError, match="ended"):
                        await follower.until("deleted")
                session = await last.enter_async_context(client_session())
                url = f"https://127.0.0.1:{verifier.port}/v2.6/events?agent_id=agent-1"
                response = await last.enter_async_context(session.get(url, ssl=verifier.administrators))
                await eventually(lambda: any('"type": "revocation"' in one.msg for one in receiver.received))
                assert (await verifier.admin("DELETE", "/v2.6/agents/agent-1")).code == 200
                deleted = await Follower(response).until("deleted")
                assert deleted["agent_id"] == "agent-1"
                await _are_brought(deleted["id"], tmp_path / "events.jsonl", receiver)
            # The end of the verifier is a proper end of the stream.
            async with asyncio.timeout(_LIMIT_S):
                await response.content.read()

    asyncio.run(play())


def _elsewhere(receiver: WebhookReceiver) -> dict[str, str]:
    return {
        "KEYLIME_VERIFIER_EVENTS_LOG": "events.jsonl",
        "KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": "webhook",
        "KEYLIME_VERIFIER_REVOCATIONS_WEBHOOK_URL": receiver.url,
        "KEYLIME_VERIFIER_REVOCATIONS_WEBHOOK_ALLOW_HTTP": "True",
        "KEYLIME_VERIFIER_REVOCATIONS_WEBHOOK_EVENTS": "True",
    }


async def _are_brought(last: int, path: Path, receiver: WebhookReceiver) -> None:
    """All events up to the last one are in the file and at the receiver."""

    def in_file() -> list[int]:
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["id"] for line in lines]

    def posted() -> list[int]:
        found = [json.loads(one.msg) for one in receiver.received]
        return [one["id"] for one in found if one["type"] == "event"]

    await eventually(lambda: in_file()[-1:] == [last])
    await eventually(lambda: posted()[-1:] == [last])
    for ids in (in_file(), posted()):
        assert ids == list(range(ids[0], last + 1))


def _environ(work_dir: Path) -> dict[str, str]:
    from tests.fakes.running_verifier import FAST

    return {"KEYLIME_DIR": str(work_dir), **FAST}
