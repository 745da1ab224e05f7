"""Verifiers, their database, machines and a webhook, and everything that is remembered of them."""

import asyncio
import functools
import itertools
import json
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

from keylime.messages.verifier import OperationalState
from tests.fakes.databases import DatabaseServer
from tests.fakes.eventual import eventually
from tests.fakes.postgresql import PostgresServer
from tests.fakes.running_verifier import NOT_TOLD, RunningVerifier, verifier_authority
from tests.fakes.stepping_clock import install_stepping_clock
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.tls_material import server_context
from tests.fakes.verifier_process import Verifiers, verifiers
from tests.fakes.webhook_receiver import WebhookReceiver
from tests.fakes.write_history import remember_writes, writes
from tests.truth.checker import REJECTED, Bounds, Violation, must_be_rejected, violations
from tests.truth.fleet import KnownMachine, KnownPusher
from tests.truth.history import Fault, History, Loss, Row, Told
from tests.truth.hunger import Hunger
from tests.truth.observer import Observer

LIMIT_S = 100.0  # for what takes seconds on an idle machine
_GOOD, _SILENT = int(OperationalState.GET_QUOTE), int(OperationalState.FAILED)
_WEBHOOK = "the webhook"
_NOTIFICATIONS = "KEYLIME_VERIFIER_REVOCATIONS"


class Stage:
    """Does what faults and scenarios ask for, and writes it down."""

    def __init__(
        self,
        site: Verifiers,
        url: str,
        lines: Sequence[TcpProxy],
        server: DatabaseServer | None,
        receiver: WebhookReceiver,
        bounds: Bounds,
        stack: AsyncExitStack,
        machines: list[KnownMachine],
        *,
        workers: int,
    ) -> None:
        """`url` is how the test reaches the database, `lines` how each verifier does.

        What is entered into `stack` lasts as long as the stage.
        """
        self.site = site
        self.url = url
        self.lines = lines
        self.server = server
        self.bounds = bounds
        self.stack = stack
        self.machines = machines
        self.faults: list[Fault] = []
        self.losses: list[Loss] = []
        self._hunger = Hunger(lambda: [one.pid for one in site.processes if one.is_running])
        self.observers = [Observer(one, self._ids, workers) for one in site.processes]
        self._receiver = receiver
        self.away_since = 0.0  # all verifiers, if they are
        self._numbers = itertools.count()
        self._known: set[tuple[object, str]] = set()

    def _ids(self) -> list[str]:
        return [machine.agent_id for machine in self.machines]

    @asynccontextmanager
    async def observed(self) -> AsyncIterator[None]:
        """Within the block all verifiers are watched and listened to."""
        for observer in self.observers:
            observer.began()
        watchers = [
            asyncio.create_task(work) for one in self.observers for work in (one.watch(), one.read_logs())
        ]
        watchers.append(asyncio.create_task(self._hunger.watch()))
        try:
            yield
        finally:
            while not all(watcher.done() for watcher in watchers):
                for watcher in watchers:
                    watcher.cancel()
                # A request whose time is over just then takes the cancellation for that.
                await asyncio.wait(watchers, timeout=1.0)
            endings = await asyncio.gather(*watchers, return_exceptions=True)
        broken = [one for one in endings if not isinstance(one, asyncio.CancelledError)]
        assert broken == [], "an observer ended"

    async def add_machines(self, count: int) -> list[KnownMachine]:
        """More machines, added through all verifiers in turn; each passes."""
        return await self._add([KnownMachine(f"machine-{next(self._numbers)}") for _ in range(count)])

    async def add_pushers(self, count: int) -> list[KnownMachine]:
        """The same of machines that attest by themselves, to all verifiers in turn."""
        interval_s = self.bounds.interval_s
        return await self._add(
            [KnownPusher(f"machine-{next(self._numbers)}", self._ports, interval_s) for _ in range(count)]
        )

    def _ports(self) -> list[int]:
        return [observer.port for observer in self.observers if observer.port is not None]

    @property
    def good_pushers(self) -> list[KnownMachine]:
        """Machines that attest by themselves and have always been good."""
        return [one for one in self.machines if isinstance(one, KnownPusher) and one.is_good]

    async def _add(self, added: list[KnownMachine]) -> list[KnownMachine]:
        for number, machine in enumerate(added):
            machine.start()
            process = self.site.processes[number % len(self.site.processes)]
            await _add(await self.site.api(process), machine)
        api = await self.site.api(self.site.processes[0])
        for machine in added:
            await eventually(functools.partial(_passes, api, machine), limit_s=LIMIT_S)
            machine.watched_since = time.monotonic()
        self.machines += added
        return added

    async def kill(self, number: int) -> None:
        """Ends a verifier as the kernel does when memory is short."""
        await self.site.processes[number].end(signal.SIGKILL)
        self.observers[number].ended(-signal.SIGKILL, was_asked=False)

    async def terminate(self, number: int) -> float:
        """Ends a verifier in good order; how many seconds it took."""
        began = time.monotonic()
        status = await self.site.processes[number].end(signal.SIGTERM)
        self.observers[number].ended(status, was_asked=True)
        return time.monotonic() - began

    async def start(self, number: int) -> None:
        """Starts a verifier that has ended; again, as service managers do, if the database is away."""
        process, observer = self.site.processes[number], self.observers[number]
        while True:
            process.start()
            observer.began()
            try:
                await process.listening()
            except AssertionError:  # it ended
                observer.ended(process.ended(), was_asked=False)
                await asyncio.sleep(0.2)
            else:
                return

    def follow(self, server: DatabaseServer) -> None:
        """Another server has taken over."""
        name = self.url.rpartition("/")[2]
        for line in self.lines:
            line.lead_to(server.port)
        self.server, self.url = server, server.url_on(server.port, name)
        self.site.follow(self.url)

    def judged(self, machine: KnownMachine) -> bool:
        """Whether some verifier has said that a machine is rejected."""
        return any(one.agent_id == machine.agent_id for observer in self.observers for one in observer.judged)

    def owners(self) -> list[tuple[object, ...]]:
        """Who owns each shard."""
        return self.site.query("SELECT shard, owner FROM shards ORDER BY shard")

    def showed_pending(self, agent_ids: Collection[str]) -> bool:
        """Whether a rejection was shown as one that waits."""
        return any(
            one.agent_id in agent_ids and (one.state, one.status) == (REJECTED, "PENDING")
            for observer in self.observers
            for one in observer.shown
        )

    def said(self, pattern: str) -> bool:
        """Whether some verifier has logged it in any of its lives."""
        return any(re.search(pattern, one.process.log.read_text()) for one in self.observers)

    def rows(self) -> dict[str, Row]:
        """How the database has the machines."""
        pushers = self._pusher_ids()
        messages = self.site.query("SELECT agent_id, message FROM revocations")
        told = Counter(str(one) for one, message in messages if _accuses(str(message), pushers))
        found = self.site.query("SELECT agent_id, operational_state FROM agents")
        rows = {str(one): Row(int(str(state)), told[str(one)]) for one, state in found}
        return {
            # Who had no verifier to turn to was silent.
            one: replace(row, state=_GOOD) if one in pushers and row.state == _SILENT else row
            for one, row in rows.items()
        }

    def _pusher_ids(self) -> frozenset[str]:
        return frozenset(one.agent_id for one in self.machines if isinstance(one, KnownPusher))

    def are_rejected(self, machines: Sequence[KnownMachine]) -> bool:
        """Whether the database has them so."""
        return {machine.agent_id for machine in machines} <= self._rejected()

    async def until_calm(self) -> None:
        """Returns when all is as it should be, or after a long time: the checker says what is wrong."""
        with suppress(TimeoutError):
            await self.site.until_shared(self._running(), limit_s=LIMIT_S)
            wanted = must_be_rejected(self.history())
            await eventually(lambda: wanted <= self._rejected(), limit_s=LIMIT_S)
            await eventually(lambda: self.site.query(NOT_TOLD) == [(0,)], limit_s=LIMIT_S)
            await eventually(self._all_is_shown, limit_s=LIMIT_S)
            asked = {machine.agent_id: len(machine.answers) for machine in self.machines}
            good = [machine for machine in self.machines if machine.is_good]
            await eventually(
                lambda: all(len(one.answers) >= asked[one.agent_id] + 2 for one in good), limit_s=LIMIT_S
            )

    def _running(self) -> int:
        return sum(process.members for process in self.site.processes if process.is_running)

    def _rejected(self) -> set[str]:
        return {agent_id for agent_id, row in self.rows().items() if row.state == REJECTED}

    def _all_is_shown(self) -> bool:
        running = [one for one in self.observers if one.process.is_running]
        return all(self._rejected() <= observer.failed() for observer in running)

    def history(self) -> History:
        """All that has happened until now."""
        for observer in self.observers:
            observer.read_log()
        pushers = self._pusher_ids()
        heard = [(_WEBHOOK, one.msg) for one in self._receiver.received]
        heard += [(machine.agent_id, one.msg) for machine in self.machines for one in machine.revocations]
        told = [Told(whom, json.loads(text)["agent_id"]) for whom, text in heard if _accuses(text, pushers)]
        return History(
            ended=time.monotonic(),
            truths={machine.agent_id: machine.truth for machine in self.machines},
            rows=self.rows(),
            answered=tuple(answer for machine in self.machines for answer in machine.answers),
            judged=tuple(one for observer in self.observers for one in observer.judged),
            refused=tuple(one for observer in self.observers for one in observer.refused),
            shown=tuple(one for observer in self.observers for one in observer.shown),
            told=tuple(told),
            # Passes of machines that attest by themselves are written after a rejection, and change nothing.
            written=tuple(one for one in writes(self.site) if one.agent_id not in pushers),
            faults=tuple(self.faults),
            starved=tuple(self._hunger.starved),
            losses=tuple(self.losses),
            runs=tuple(run for observer in self.observers for run in observer.runs),
            listeners=frozenset({_WEBHOOK, *self._ids()}) - pushers,
        )

    def news(self) -> tuple[list[Violation], str]:
        """Promises that were broken since the last time, and what happened, in numbers."""
        history = self.history()
        found = [
            one for one in violations(history, self.bounds) if (one.rule, one.subject) not in self._known
        ]
        self._known |= {(one.rule, one.subject) for one in found}
        bad = [truth for truth in history.truths.values() if truth.bad_since is not None]
        rejected = sum(row.state == REJECTED for row in history.rows.values())
        summary = (
            f"{len(history.truths)} machines, {len(bad)} bad, {rejected} rejected; "
            f"{len(history.written)} writes, {len(history.shown)} answers, {len(history.told)} told; "
            f"{sum(one.for_s for one in history.starved):.0f} s without a processor"
        )
        return found, summary


def _accuses(message: str, pushers: Collection[str]) -> bool:
    """Whether a revocation is one of evidence: that a machine which attests by itself was silent is none."""
    told = json.loads(message)
    return told["agent_id"] not in pushers or told["type"] == "revocation"


async def _stop_all(machines: Sequence[KnownMachine]) -> None:
    for machine in machines:
        await machine.stop()


async def _add(api: RunningVerifier, machine: KnownMachine) -> None:
    """Adds a machine as a patient operator does: who is told that nothing was done tries again."""
    is_unknown = False

    async def is_added() -> bool:
        nonlocal is_unknown
        answer = await api.admin("POST", f"/v2.6/agents/{machine.agent_id}", machine.enrolment())
        if answer.code == HTTPStatus.SERVICE_UNAVAILABLE:
            is_unknown |= answer.results.get("outcome") != "nothing was done"
            return False
        assert answer.code == HTTPStatus.OK or (is_unknown and answer.code == HTTPStatus.CONFLICT), answer
        return True

    await eventually(is_added, limit_s=LIMIT_S)


async def _passes(api: RunningVerifier, machine: KnownMachine) -> bool:
    status = await api.status(machine)
    # Who attests by himself may be overdue again, where everything takes its time.
    is_well = status["attestation_status"] in ("PASS", "TIMEOUT")
    return bool(is_well and status["attestation_count"] >= 2)


def options_of(lease_s: float, interval_s: float) -> dict[str, str]:
    """Of verifiers whose machines may be silent for as long as they like."""
    return {
        "KEYLIME_VERIFIER_LEASE": str(lease_s),
        "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(interval_s),
        "KEYLIME_VERIFIER_RETRY_INTERVAL": str(interval_s),
        "KEYLIME_VERIFIER_MAX_RETRIES": "100000",
        f"{_NOTIFICATIONS}_ENABLED_REVOCATION_NOTIFICATIONS": "['agent', 'webhook']",
    }


@asynccontextmanager
async def stage(
    directory: Path,
    database: DatabaseServer | str,
    bounds: Bounds,
    *,
    verifiers_count: int,
    workers: int = 1,
) -> AsyncIterator[Stage]:
    """Verifiers on a new database of a server, or on a SQLite file, and four machines that stay good."""
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(WebhookReceiver(server_context(verifier_authority())))
        server = None if isinstance(database, str) else database
        lines: list[TcpProxy] = []
        each: list[Mapping[str, str]]
        if not isinstance(database, str):
            url = database.new_database()
            if isinstance(database, PostgresServer):
                install_stepping_clock(url)
            name = url.rpartition("/")[2]
            lines = [await stack.enter_async_context(TcpProxy(database.port)) for _ in range(verifiers_count)]
            each = [{"KEYLIME_VERIFIER_DATABASE_URL": database.url_on(line.port, name)} for line in lines]
        else:
            url = database
            each = [{} for _ in range(verifiers_count)]
        options = {
            **options_of(bounds.lease_s, bounds.interval_s),
            f"{_NOTIFICATIONS}_WEBHOOK_URL": receiver.url,
            "KEYLIME_VERIFIER_NUM_WORKERS": str(workers),
        }
        machines: list[KnownMachine] = []
        stack.push_async_callback(_stop_all, machines)  # when no verifier connects any more
        site = await stack.enter_async_context(verifiers(directory, url, options, *each))
        remember_writes(url)
        made = Stage(site, url, lines, server, receiver, bounds, stack, machines, workers=workers)
        await stack.enter_async_context(made.observed())
        await made.add_machines(4)
        yield made
