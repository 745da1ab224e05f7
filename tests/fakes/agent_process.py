"""A real keylime_agent process on loopback, and a registrar that makes real credentials and remembers."""

import asyncio
import base64
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from keylime.http.server import Request, Response, Role, Route, Server
from keylime.messages.registrar import ActivateRequest, RegisterReply, RegisterRequest
from keylime.messages.versions import ServerVersions
from keylime.nonce import random_text
from keylime.tpm.credential import activation_tag
from keylime.tpm.keys import parse_attestation_key, parse_endorsement_key
from keylime.tpm.sealing import make_credential
from tests.fakes.forked_programs import ForkedProcess, Order, start

_LIMIT_S = 100.0


@dataclass
class Registrar:
    """Answers with `refusal` while that is set; knows whom it activated."""

    refusal: int | None = None
    versions: tuple[str, ...] | None = ("2.4", "2.5")  # None: no /version page
    spoken: str = "2.5"  # the only version it takes when it has no such page
    requests: list[RegisterRequest] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)
    _tags: dict[str, str] = field(default_factory=dict)

    def serve(self, port: int = 0, tls: ssl.SSLContext | None = None) -> tuple[Server, int]:
        server = Server(
            [
                Route("GET", "/version", Role.ANONYMOUS, self._version, plain_http=True, versioned=False),
                Route("POST", "/agents/{agent_id}", Role.ANONYMOUS, self._register, plain_http=True),
                Route("PUT", "/agents/{agent_id}", Role.ANONYMOUS, self._activate, plain_http=True),
            ]
        )
        return server, server.listen("127.0.0.1", port, tls)

    async def _version(self, _request: Request) -> Response:
        if self.versions is None:
            return Response(404, empty=True)
        return Response(results=ServerVersions(self.versions[-1], list(self.versions)))

    async def _register(self, request: Request) -> Response:
        self.paths.append(f"{request.method} {request.version}")
        if self.refusal is not None:
            return Response(
                self.refusal, status="Agent re-registration with different TPM identity is forbidden"
            )
        if self.versions is None and request.version != self.spoken:
            return Response(404, empty=True)
        body = request.json(RegisterRequest)
        self.requests.append(body)
        secret = random_text(32).encode()
        agent_id = request.parameters["agent_id"]
        self._tags[agent_id] = activation_tag(secret, agent_id)
        ek = parse_endorsement_key(base64.b64decode(body.ek_tpm or ""))
        ak = parse_attestation_key(base64.b64decode(body.aik_tpm or ""))
        blob = make_credential(ek, ak.name, secret)
        return Response(results=RegisterReply(base64.b64encode(blob).decode()))

    async def _activate(self, request: Request) -> Response:
        self.paths.append(f"{request.method} {request.version}")
        agent_id = request.parameters["agent_id"]
        if request.json(ActivateRequest).auth_tag != self._tags.get(agent_id):
            return Response(400)
        self.active.add(agent_id)
        return Response()


@asynccontextmanager
async def _reader_of(pipe: int) -> AsyncIterator[asyncio.StreamReader]:
    """The lines that come out of a pipe, which is closed at the end."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb")
    )
    try:
        yield reader
    finally:
        transport.close()


class AgentProcess:
    """The console program with options from the environment; its output is collected line by line."""

    program = "keylime_agent"

    def __init__(self, work_dir: Path, tcti: str, **options: object) -> None:
        self.work_dir = work_dir
        self.lines: list[str] = []
        self.errors = ""
        self.stopped_in_s = 0.0
        self.environment = {
            "PATH": os.environ["PATH"],
            "TCTI": tcti,
            "KEYLIME_DIR": str(work_dir),
            "KEYLIME_TEST": "on",
            "KEYLIME_AGENT_RUN_AS": "",
            "KEYLIME_AGENT_PORT": "0",
            "KEYLIME_AGENT_IP": "127.0.0.1",
            "KEYLIME_AGENT_ENABLE_REVOCATION_NOTIFICATIONS": "false",
            "KEYLIME_AGENT_EXPONENTIAL_BACKOFF_INITIAL_DELAY": "200",
        }
        self.environment |= {f"KEYLIME_AGENT_{name.upper()}": str(value) for name, value in options.items()}
        self._process: ForkedProcess | None = None
        self._reader: asyncio.Task[None] | None = None
        self._grown = asyncio.Condition()

    async def __aenter__(self) -> Self:
        (output, stdout), (errors, stderr) = os.pipe(), os.pipe()
        try:
            self._process = start(Order(self.program, (), self.environment), stdout=stdout, stderr=stderr)
        finally:
            os.close(stdout)
            os.close(stderr)
        self._reader = asyncio.create_task(self._read(output, errors))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
        await self.ended()

    async def line(self, text: str, count: int = 1) -> str:
        """The line number `count` that holds `text`, as soon as it is there."""
        async with asyncio.timeout(_LIMIT_S), self._grown:
            while len(found := [line for line in self.lines if text in line]) < count:
                if self._reader is None or self._reader.done():
                    raise AssertionError(f"agent ended without {text!r}:\n{self}")
                await self._grown.wait()
        return found[count - 1]

    async def port(self) -> int:
        """Where it listens."""
        return int((await self.line("Listening on")).rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The process."""
        if self._process is None:
            raise AssertionError("not started")
        return self._process.pid

    def hang_up(self) -> None:
        """Sends SIGHUP."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status after the signal; `stopped_in_s` is how long it took for itself."""
        if self._process is not None:
            _, self.stopped_in_s = await asyncio.to_thread(self._process.stop, number)
        return await self.ended()

    async def ended(self) -> int:
        """Its exit status, once it has ended by itself."""
        if self._process is None or self._reader is None:
            raise AssertionError("not started")
        async with asyncio.timeout(_LIMIT_S):
            await self._reader
            return await asyncio.to_thread(self._process.wait, _LIMIT_S)

    def __str__(self) -> str:
        return "\n".join([*self.lines, self.errors])

    async def _read(self, output: int, errors: int) -> None:
        async with _reader_of(output) as said, _reader_of(errors) as complained:
            rest = asyncio.create_task(complained.read())
            async for line in said:
                await self._tell(line.decode().rstrip("\n"))
            self.errors = (await rest).decode()
            await self._tell("")

    async def _tell(self, line: str) -> None:
        async with self._grown:
            self.lines.append(line)
            self._grown.notify_all()


class PushAgentProcess(AgentProcess):
    """The agent that attests by itself."""

    program = "keylime_push_model_agent"
