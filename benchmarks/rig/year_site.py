"""Verifier and registrar of a simulated year, and what is done to them and to the machines."""

import asyncio
import base64
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.rig.processes import free_port
from benchmarks.rig.year_machines import POLICY, Notice, Releases, ServicesAuthority, YearMachine, notice_of
from benchmarks.rig.year_plan import Event, Kind
from keylime.messages.verifier import OperationalState
from keylime.pki.certificates import parse_certificate
from tests.fakes.running_verifier import query_database
from tests.fakes.server_process import ServerProcess
from tests.lab.calendar import NOTICED_S, set_clock

_AT_ONCE = 8
_CONNECTIONS = 3
_FINDINGS = 3
_MONTH = timedelta(days=30)
_DRAINED_S = 30.0
_PATIENCE_S = 100.0  # for what takes seconds on an idle machine
_PAUSE_S = 0.25
_VERIFIER = {
    "QUOTE_INTERVAL": "1",
    "NUM_WORKERS": "2",
    "EXPONENTIAL_BACKOFF": "False",
    "RETRY_INTERVAL": "1",
    "MAX_RETRIES": "12",  # as many seconds as a machine may take to boot
    "SILENCE_INTERVAL": "2",
    "LEASE": "4",
}


class YearSite:
    """What an operator has; everything acts by itself but for `do`."""

    def __init__(self, work_dir: Path, clock: Path, machines: int) -> None:
        self._work_dir, self._clock = work_dir, clock
        self._port, registrar_port, self._registrar_tls_port = free_port(), free_port(), free_port()
        verifier = {"PORT": str(self._port), **_VERIFIER}
        registrar = {"PORT": registrar_port, "TLS_PORT": self._registrar_tls_port, "NUM_WORKERS": 1}
        self.verifier = ServerProcess(
            "keylime_verifier",
            work_dir,
            **{f"KEYLIME_VERIFIER_{name}": value for name, value in verifier.items()},
        )
        self.registrar = ServerProcess(
            "keylime_registrar",
            work_dir,
            **{f"KEYLIME_REGISTRAR_{name}": str(value) for name, value in registrar.items()},
        )
        self._releases = Releases()
        authority = ServicesAuthority(self._authority / "cacert.crt")
        url = f"http://127.0.0.1:{registrar_port}"
        self.machines = [YearMachine(number, authority, self._releases, url) for number in range(machines)]
        self.bad: set[str] = set()
        self.questions_until_found = 0
        self.off = timedelta(0)

    @property
    def _authority(self) -> Path:
        return self._work_dir / "cv_ca"

    @property
    def now(self) -> datetime:
        """The time there: this process follows the same clock."""
        return datetime.now(UTC)

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Everything starts, and every machine is added; at the end everything is ended."""
        try:
            for program in (self.verifier, self.registrar):
                await self._start(program)
            await gather_some(machine.start() for machine in self.machines)
            policy = {"runtime_policy": base64.b64encode(self._releases.policy.encode()).decode()}
            await self.call("POST", f"/allowlists/{POLICY}", policy)
            await gather_some(
                self.call("POST", f"/agents/{machine.agent_id}", machine.enrolment())
                for machine in self.machines
            )
            yield
        finally:
            for program in (self.verifier, self.registrar):
                program.kill()
            await asyncio.gather(*(machine.agent.stop() for machine in self.machines))

    async def go_to(self, off: timedelta) -> None:
        """Sets the clock of everything; until all threads know, it is two times at once."""
        self.off = off
        set_clock(self._clock, off)
        await asyncio.sleep(2 * NOTICED_S)

    async def do(self, event: Event) -> None:
        """Lets something happen, to its end."""
        machines = [self.machines[number] for number in event.machines]
        match event.kind:
            case Kind.REBOOT:
                await gather_some(machine.reboot() for machine in machines)
            case Kind.RESTART_AGENT:
                await gather_some(machine.restart_agent() for machine in machines)
            case Kind.RENEW:
                await gather_some(machine.renew() for machine in machines)
            case Kind.MEASURE:
                for machine in machines:
                    machine.run_tools()
            case Kind.POLICY:
                await self._update_all()
            case Kind.VERIFIER_TERM | Kind.VERIFIER_KILL | Kind.REGISTRAR_TERM | Kind.REGISTRAR_KILL:
                await self._restart(event.kind)
            case Kind.WORKER_KILL:
                await self._lose_a_worker()
            case Kind.CLOCK_BACK:
                await self.go_to(self.off - timedelta(hours=1))
            case Kind.SILENCE:
                await self._be_silent(machines[0])
            case Kind.TAMPER:
                await self._tamper(machines[0])

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """The results of a call by an operator, whose certificate is the one in the directory now."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False
        tls.load_verify_locations(self._authority / "cacert.crt")
        tls.load_cert_chain(self._authority / "client-cert.crt", self._authority / "client-private.pem")
        url = f"https://127.0.0.1:{self._port}/v2.5{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, json=body, ssl=tls) as answer,
        ):
            text = await answer.text()
            if answer.status not in (200, 201):
                raise RuntimeError(f"{method} {path}: {answer.status} {text}")
            return (await answer.json())["results"]

    async def statuses(self) -> dict[str, dict[str, Any]]:
        """What the verifier shows of all machines, by id."""
        shown: dict[str, dict[str, Any]] = await self.call("GET", "/agents/?bulk=1")
        return shown

    def written(self) -> set[Notice]:
        """What the verifier has still written down to tell machines, whether they were told or not."""
        rows = query_database(self._work_dir, "SELECT message FROM revocations")
        return {notice_of(text) for (text,) in rows}

    def told(self) -> set[Notice]:
        """What machines were told, ever."""
        return {notice for machine in self.machines for notice in machine.notices()}

    async def until_attested(self, rounds: int = 2) -> int:
        """How many rounds all together were passed until each machine that is not bad had passed so many.

        Raises TimeoutError, and RuntimeError for one that is rejected.
        """
        before = {agent_id: one["attestation_count"] for agent_id, one in (await self.statuses()).items()}
        passed = dict.fromkeys(before, 0)

        async def are_attested() -> bool:
            for agent_id, one in (await self.statuses()).items():
                passed[agent_id] = one["attestation_count"] - before[agent_id]
                if one["operational_state"] == OperationalState.INVALID_QUOTE and agent_id not in self.bad:
                    raise RuntimeError(f"rejected: {described(one)}")
            return all(passed[agent_id] >= rounds for agent_id in before.keys() - self.bad)

        try:
            await until(are_attested, "every machine is attested")
        except TimeoutError as error:
            late = sorted(agent_id for agent_id in before.keys() - self.bad if passed[agent_id] < rounds)
            shown = await self.statuses()
            raise TimeoutError(f"missed: {'; '.join(described(shown[one]) for one in late)}") from error
        return sum(passed.values())

    async def until_renewed(self) -> None:
        """Verifier and registrar show certificates that are good for a month. Raises TimeoutError."""

        async def are_good() -> bool:
            # Each connection is taken by any of the workers.
            ports = (*([self._port] * _CONNECTIONS), self._registrar_tls_port)
            ends = [await asyncio.to_thread(certificate_end, port) for port in ports]
            return min(ends) > self.now + _MONTH

        await until(are_good, "services have renewed their certificates")

    async def _update_all(self) -> None:
        """The policy first, and the files when every worker has judged by it."""
        changed = self._releases.publish()
        policy = {"runtime_policy": base64.b64encode(self._releases.policy.encode()).decode()}
        await self.call("PUT", f"/allowlists/{POLICY}", policy)
        await self.until_attested()
        for machine in self.machines:
            machine.update(changed)

    async def _start(self, program: ServerProcess) -> None:
        program.start()
        await asyncio.to_thread(program.line, "Listening on")

    async def _restart(self, kind: Kind) -> None:
        is_verifier = kind in (Kind.VERIFIER_TERM, Kind.VERIFIER_KILL)
        program = self.verifier if is_verifier else self.registrar
        is_killed = kind in (Kind.VERIFIER_KILL, Kind.REGISTRAR_KILL)
        number = signal.SIGKILL if is_killed else signal.SIGTERM
        status, took_s = await asyncio.to_thread(program.stop, number)
        if not is_killed and (status != 0 or took_s > _DRAINED_S):
            raise RuntimeError(f"{program.name} ended with status {status} after {took_s:.0f} s")
        await self._start(program)

    async def _lose_a_worker(self) -> None:
        workers = self.verifier.children
        os.kill(workers[0], signal.SIGKILL)

        async def is_replaced() -> bool:
            now = self.verifier.children
            return workers[0] not in now and len(now) == len(workers)

        await until(is_replaced, "another worker is started")

    async def _be_silent(self, machine: YearMachine) -> None:
        await machine.agent.stop()
        await self.go_to(self.off + timedelta(days=2))

        async def is_missed() -> bool:
            status = (await self.statuses())[machine.agent_id]
            return bool(status["operational_state"] == OperationalState.FAILED)

        await until(is_missed, "a silent machine is missed")
        await machine.start()

    async def _tamper(self, machine: YearMachine) -> None:
        self.bad.add(machine.agent_id)
        before = machine.questions
        machine.agent.tamper()

        async def is_found() -> bool:
            return bool((await self.statuses())[machine.agent_id]["attestation_status"] == "FAIL")

        await until(is_found, "a machine that was tampered with is rejected")
        self.questions_until_found = machine.questions - before


def certificate_end(port: int) -> datetime:
    """When the certificate of a server ends."""
    shown = ssl.get_server_certificate(("127.0.0.1", port), timeout=20)
    return parse_certificate(shown.encode()).not_valid_after_utc


def described(status: Mapping[str, Any]) -> str:
    """Which machine, and what is known about it."""
    state = OperationalState(status["operational_state"]).name
    findings = [finding["explanation"] for finding in status["last_findings"]]
    where = f"{status['ip']}:{status['port']}"
    return f"{where} {state} {status['last_event_id']} {'; '.join(findings[:_FINDINGS])}"


async def until(question: Callable[[], Awaitable[bool]], what: str) -> None:
    """Returns when the answer is yes. Raises TimeoutError."""
    deadline = time.monotonic() + _PATIENCE_S
    while not await question():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_PATIENCE_S:.0f} s: {what}")
        await asyncio.sleep(_PAUSE_S)


async def gather_some(tasks: Iterable[Awaitable[object]]) -> None:
    """Awaits all, some at a time."""
    waiting = iter(tasks)

    async def work() -> None:
        for task in waiting:
            await task

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
