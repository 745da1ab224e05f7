"""Asks verifiers for the status of all machines without a pause, and reads what they log."""

import asyncio
import re
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import aiohttp

from keylime.messages.verifier import OperationalState
from tests.fakes.client_session import client_session
from tests.fakes.running_verifier import verifier_authority
from tests.fakes.tls_material import client_context
from tests.fakes.verifier_process import VerifierProcess
from tests.truth.history import Judged, Refused, Run, Shown

_PAUSE_S = 0.05
_LOOK_AGAIN_S = 0.1
_PATIENCE_S = 5.0  # with one answer
_REJECTION = re.compile(r"agent (\S+): .+ -> Invalid Quote(?: \(reqid=\w+\))?$")
_REFUSAL = re.compile(r"agent (\S+): the verdict 'pass' does not count")
_LISTENING = re.compile(r"Listening on 127\.0\.0\.1:(\d+)")
_NEVER = re.compile(r"Traceback \(most recent call last\)|defect of the verifier")


class Observer:
    """Everything that one verifier process shows and says, over all its lives."""

    def __init__(
        self, process: VerifierProcess, machines: Callable[[], Collection[str]], workers: int
    ) -> None:
        """`machines` tells whose status is asked for."""
        self.process = process
        self.shown: list[Shown] = []
        self.judged: list[Judged] = []
        self.refused: list[Refused] = []
        self.runs: list[Run] = []
        self._machines = machines
        self._workers = workers
        self._connections = 0
        self._read = 0  # bytes of the log
        self._read_at = time.monotonic()
        self._port = ""

    def began(self) -> None:
        """The process has been started."""
        self._port = ""
        name = f"{self.process.name}/{len(self.runs) + 1}"
        self.runs.append(Run(name, time.monotonic(), workers=self._workers))

    def ended(self, status: int, *, was_asked: bool) -> None:
        """The process has ended, in good order if it `was_asked` to."""
        self.read_log()
        self.runs[-1] = replace(
            self.runs[-1], ended=time.monotonic(), status=status, was_asked_to_end=was_asked
        )

    @property
    def port(self) -> int | None:
        """Where it listens, as far as it has said so."""
        return int(self._port) if self._port and self.process.is_running else None

    def failed(self) -> set[str]:
        """The machines that this life of the process has shown as failed."""
        run = self.runs[-1].name
        return {one.agent_id for one in self.shown if one.run == run and one.status == "FAIL"}

    def read_log(self) -> None:
        """Takes note of what has been said since the last time."""
        not_before, self._read_at = self._read_at, time.monotonic()
        with self.process.log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            run = self.runs[-1]
            if (found := _REJECTION.search(line)) is not None:
                self.judged.append(Judged(not_before, time.monotonic(), run.name, found[1]))
            if (found := _REFUSAL.search(line)) is not None:
                self.refused.append(Refused(time.monotonic(), run.name, found[1]))
            if (listening := _LISTENING.search(line)) is not None:
                self._port = listening[1]
            if _NEVER.search(line):
                self.runs[-1] = replace(run, said=(*run.said, line))

    async def read_logs(self) -> None:
        """Reads the log, for ever."""
        while True:
            self.read_log()
            await asyncio.sleep(_PAUSE_S)

    async def watch(self) -> None:
        """Asks about one machine after the other, for ever, over one connection as long as it lasts."""
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(self._connected)
        context = client_context(verifier_authority(), verifier_authority().issue("operator"))
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
        async with client_session(
            {"timeout": timeout, "trace_configs": [tracing]}, limit=1, ssl=context
        ) as session:
            while True:
                for agent_id in list(self._machines()):
                    await self._look(session, agent_id)
                    await asyncio.sleep(_LOOK_AGAIN_S)
                await asyncio.sleep(_PAUSE_S)

    async def _connected(self, *_: object) -> None:
        self._connections += 1

    async def _look(self, session: aiohttp.ClientSession, agent_id: str) -> None:
        if not self._port or not self.process.is_running:
            return
        run, asked_at = self.runs[-1].name, time.monotonic()
        try:
            async with session.get(f"https://127.0.0.1:{self._port}/v2.5/agents/{agent_id}") as response:
                if response.status != HTTPStatus.OK:
                    return
                results = (await response.json())["results"]
        except (aiohttp.ClientError, TimeoutError):
            return
        if run != self.runs[-1].name:
            return
        self.shown.append(
            Shown(
                asked_at,
                time.monotonic(),
                run,
                f"{run}:{self._connections}",
                agent_id,
                _state_in(results),
                results["attestation_status"],
                results["attestation_count"],
            )
        )


def _state_in(results: dict[str, Any]) -> int:
    """The state; of a machine that attests by itself nothing but the status tells of a rejection."""
    is_rejected = results.get("attestation_mode") == "push" and results["attestation_status"] == "FAIL"
    return int(OperationalState.INVALID_QUOTE) if is_rejected else int(results["operational_state"])
