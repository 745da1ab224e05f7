"""A verifier that is followed: streams that end as a test says, and answers one after the other."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import msgspec

from keylime.config.loader import load_settings
from keylime.errors import KeylimeError, PeerUnreachable
from keylime.http.event_source import StreamedEvent
from keylime.http.replies import Reply
from keylime.identifiers import AgentId
from keylime_tenant.arguments import Arguments
from keylime_tenant.client import RegistrarClient, VerifierClient
from keylime_tenant.config import Address, tenant_config
from keylime_tenant.forms import Form
from keylime_tenant.peer import Trouble
from keylime_tenant.render import Output
from keylime_tenant.session import Session

AGENT = AgentId("agent-1")
_ENVIRON = {"KEYLIME_DIR": "/nonexistent"}
BEGUN = StreamedEvent("7", "message", b"")


def block(number: int, name: str = "message", /, **fields: object) -> StreamedEvent:
    """One block of a stream."""
    return StreamedEvent(str(number), name, json.dumps(fields).encode())


def event(
    number: int, kind: str = "state", agent_id: str | None = AGENT, **details: object
) -> dict[str, Any]:
    """An event as the history tells it."""
    return {
        "id": number,
        "at": 5,
        "kind": kind,
        "agent_id": agent_id,
        "policy": None,
        "actor": None,
        "request_id": None,
        "details": details,
    }


def told(number: int, kind: str = "state", agent_id: str | None = AGENT, **details: object) -> StreamedEvent:
    """An event as a stream tells it."""
    return block(number, **event(number, kind, agent_id, **details))


class ToldStreams:
    """Connections that end as a test says: each is what it tells, or why there is none; the last stays."""

    place = "the verifier"

    def __init__(self, *connections: Sequence[StreamedEvent] | KeylimeError) -> None:
        self._connections = [*connections]
        self.followed: list[tuple[str, str]] = []

    async def version(self) -> str:
        return "2.6"

    async def follow(self, path: str, after: str) -> AsyncGenerator[StreamedEvent, None]:
        self.followed.append((path, after))
        if not self._connections:
            await asyncio.Event().wait()
        connection = self._connections.pop(0)
        if isinstance(connection, KeylimeError):
            raise connection
        for one in connection:
            yield one
        if not self._connections:
            await asyncio.Event().wait()


def answer(results: object = None, code: int = 200, status: str = "Success") -> Reply:
    """What a service says."""
    return Reply(code, status, msgspec.Raw(msgspec.json.encode(results)))


GONE = answer(code=404, status="agent id not found")
NO_VERSIONS = answer(code=404)


Said: TypeAlias = Reply | KeylimeError
"""What becomes of a question."""


class AnsweringPeer:
    """Answers, or fails to, in the order of a test; the last answer of each kind is given again and again."""

    def __init__(self, versions: Sequence[Said], statuses: Sequence[Said], histories: Sequence[Said]) -> None:
        self._versions, self._statuses, self._histories = [*versions], [*statuses], [*histories]
        self.asked: list[str] = []  # paths

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: msgspec.Struct | None = None,
    ) -> Reply:
        self.asked.append(path)
        if path == "/version":
            script = self._versions
        else:
            script = self._histories if path.endswith("/history") else self._statuses
        return _given(script.pop(0) if len(script) > 1 else script[0])

    async def trouble(self, error: PeerUnreachable) -> Trouble:
        return Trouble.NETWORK

    async def close(self) -> None:
        pass


def _given(said: Said) -> Reply:
    if isinstance(said, KeylimeError):
        raise said
    return said


class FollowingSession:
    """A session of `--follow`, with what it has shown and said."""

    def __init__(
        self,
        streams: ToldStreams,
        *,
        statuses: Sequence[Said] = (GONE,),
        histories: Sequence[Said] = (GONE,),
        versions: Sequence[Said] = (NO_VERSIONS,),
        exit_code: bool = False,
        wait: float | None = None,
    ) -> None:
        self.peer = AnsweringPeer(versions, statuses, histories)
        self.slept: list[float] = []
        self._stdout, self._stderr = io.StringIO(), io.StringIO()
        log = logging.getLogger("tests.followed")
        log.setLevel(logging.INFO)
        log.handlers = [logging.StreamHandler(self._stderr)]
        log.propagate = False
        address = Address("192.0.2.1", 8881)
        self.session = Session(
            arguments=Arguments(follow=True, exit_code=exit_code, wait=wait),
            config=tenant_config(load_settings("tenant", environ=_ENVIRON), Arguments(), _ENVIRON),
            agent_id=AGENT,
            output=Output(log, Form.JSONL, stdout=self._stdout, stderr=self._stderr, environ={}),
            registrar=RegistrarClient(address, self.peer),
            verifier=VerifierClient(address, self.peer),
            connect_verifier=_never,
            open_events=lambda: streams,
            connect_agent=_never,
            read_policies=_never,
            prepare_delivery=_never,
            revoke_certificate=_never,
            check_ek=_never,
            download=_never,
            ask=None,
            sleep=self._sleep,
            now=lambda: sum(self.slept),
        )

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The lines of JSON."""
        return [json.loads(line) for line in self._stdout.getvalue().splitlines()]

    @property
    def said(self) -> list[str]:
        """What it said beside them."""
        return self._stderr.getvalue().splitlines()

    async def _sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        await asyncio.sleep(0)


def _never(*_arguments: object) -> NoReturn:
    raise AssertionError("who follows does nothing else")
