"""Strangers' evidence is judged in processes of its own, one piece at a time in each: polling goes on.

A worker is started when there is something to judge, and ended when there was nothing for a minute. One that
takes too much memory or time ends and is replaced: the request gets 503, never a verdict.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Self

import msgspec

from keylime.http.exchange import Caller, Response, Role
from keylime.http.turns import Turn, Turns
from keylime_verifier.verification.evidence_worker import ANSWER, OUT_OF_MEMORY, REQUEST, WorkerRules
from keylime_verifier.verification.refusals import NotJudged

log = logging.getLogger(__name__)

MOST_WAITING = 16
_IDLE_S = 60.0
_PATIENCE = 6  # how much longer than its CPU time a worker may take, on a machine that has other things to do
_START_S = 60.0
_MOST_ANSWERED = 64 << 20  # bytes
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
_COMMAND = (sys.executable, "-P", "-m", "keylime_verifier.verification.evidence_worker")


class WorkerEnded(Exception):
    """A worker gave no answer that can be used; the text says why."""


@dataclass(slots=True, eq=False)
class _Work:
    """One piece of evidence that waits for its verdict."""

    body: bytes
    is_typed: bool
    answer: "asyncio.Future[Response]"


class EvidenceWorkers:
    """Up to `count` workers, and those that wait for them. Must be closed."""

    def __init__(self, count: int, rules: WorkerRules, *, room: int = MOST_WAITING) -> None:
        """`room` is how many may wait for their turns."""
        self._count = count
        self._rules = rules
        self._turns = Turns(room)
        self._waiting: dict[Turn, _Work] = {}
        self._idle: list[_Worker] = []
        self._running = 0  # workers that judge, or are being started to
        self._tasks: set[asyncio.Task[None]] = set()
        self._retirement: asyncio.TimerHandle | None = None

    @property
    def processes(self) -> tuple[int, ...]:
        """The ids of idle workers."""
        return tuple(worker.pid for worker in self._idle)

    def admit(self, caller: Caller) -> None:
        """Raises NotJudged when evidence of `caller` would not even be queued."""
        if not self._turns.has_room(_turn_of(caller), self._now()):
            raise _too_many()

    async def answer(self, caller: Caller, body: bytes, *, is_typed: bool) -> Response:
        """What is to be answered to evidence in `body`. Raises NotJudged."""
        turn = _turn_of(caller)
        loser = self._turns.join(turn, self._now())
        if loser is turn:
            raise _too_many()
        if loser is not None:
            _fail(self._waiting.pop(loser).answer, _too_many())
        work = _Work(body, is_typed, asyncio.get_running_loop().create_future())
        del body
        self._waiting[turn] = work
        self._run_one_more()
        answer = work.answer
        del work
        try:
            return await answer
        finally:
            self._turns.leave(turn)
            self._waiting.pop(turn, None)

    async def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for work in self._waiting.values():
            _fail(work.answer, NotJudged())
        if self._retirement is not None:
            self._retirement.cancel()
        await self._end_idle()

    def _run_one_more(self) -> None:
        if self._running < self._count:
            self._running += 1
            self._keep(self._run())

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        """Has one piece after the other judged until none waits."""
        if self._retirement is not None:
            self._retirement.cancel()
        worker: _Worker | None = self._idle.pop() if self._idle else None
        try:
            while (turn := self._turns.next(self._now())) is not None:
                work = self._waiting.pop(turn)
                began = self._now()
                try:
                    if worker is None:
                        worker = await _Worker.start(self._rules)
                    response = await worker.judge(work)
                except (WorkerEnded, OSError) as error:
                    log.warning("evidence was not judged: %s", error)
                    _fail(work.answer, NotJudged(str(error)))
                    if worker is not None:
                        await worker.end()
                    worker = None
                else:
                    if not work.answer.done():
                        work.answer.set_result(response)
                    del response
                finally:
                    self._turns.charge(turn, self._now() - began, self._now())
                    _fail(work.answer, NotJudged())  # when this ends
                    del work
        except BaseException:
            if worker is not None:
                await worker.end()
            raise
        finally:
            self._running -= 1
        if worker is not None:
            self._idle.append(worker)
        self._retirement = asyncio.get_running_loop().call_later(_IDLE_S, self._retire)

    def _retire(self) -> None:
        self._keep(self._end_idle())

    async def _end_idle(self) -> None:
        while self._idle:
            await self._idle.pop().end()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class _Worker:
    """One process, and the socket that it is asked through."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limit_s: float,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._limit_s = limit_s
        self._is_new = True

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, rules: WorkerRules) -> Self:
        """A worker that is about to be ready. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            try:
                reader, writer = await asyncio.open_unix_connection(sock=ours)
            except BaseException:
                ours.close()
                raise
            try:
                # Popen, not the event loop's: it neither waits nor runs anything of ours in the child.
                process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own program
                    _COMMAND,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                )
            except BaseException:
                writer.close()
                raise
        writer.write(msgspec.json.encode(rules) + b"\n")
        return cls(process, reader, writer, rules.cpu_time_s * _PATIENCE)

    async def judge(self, work: _Work) -> Response:
        """The answer to a piece of evidence. Raises WorkerEnded."""
        limit_s = self._limit_s + (_START_S if self._is_new else 0)
        self._is_new = False
        try:
            async with asyncio.timeout(limit_s):
                self._writer.write(REQUEST.pack(work.is_typed, len(work.body)))
                self._writer.write(work.body)
                work.body = b""  # the socket has it
                await self._writer.drain()
                code, length = ANSWER.unpack(await self._reader.readexactly(ANSWER.size))
                if length > _MOST_ANSWERED:
                    raise WorkerEnded("the answer is too large")
                body = await self._reader.readexactly(length)
        except TimeoutError as error:
            raise WorkerEnded("judging this evidence takes too long") from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise WorkerEnded(await self._why_ended()) from error
        return Response(code, document=msgspec.Raw(body))

    async def end(self) -> None:
        """Ends the process and waits for its end."""
        self._writer.close()
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _why_ended(self) -> str:
        self._process.kill()  # a process that has closed its socket is of no use any more
        status = await asyncio.to_thread(self._process.wait)
        if status == -signal.SIGXCPU:
            return "judging this evidence takes more CPU time than it may"
        if status == OUT_OF_MEMORY or -status in (signal.SIGSEGV, signal.SIGABRT):
            return "judging this evidence takes more memory than it may"
        return "the process that judges evidence has ended"


def _turn_of(caller: Caller) -> Turn:
    return Turn(caller.prefixes, goes_first=caller.role is Role.ADMIN)


def _too_many() -> NotJudged:
    return NotJudged("Too many verifications are waiting, try again later")


def _fail(answer: "asyncio.Future[Response]", error: NotJudged) -> None:
    if not answer.done():
        answer.set_exception(error)
