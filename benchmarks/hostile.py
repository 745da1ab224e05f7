"""What strangers cost: polling lag, memory and the enrolment of honest agents under attack, and without it.

Each scenario has daemons of its own, and a span without attack before the one with it. The strangers stand
back behind the daemons in the scheduler, since theirs are other machines; where CPUs are few they still cost.
"""

import argparse
import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import aiohttp
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.table import Table

from benchmarks.rig import strangers
from benchmarks.rig.machines import policy_of
from benchmarks.rig.percentiles import percentiles_ms
from benchmarks.rig.processes import Daemon, free_port
from benchmarks.rig.strangers import Attack, Target, under_attack
from benchmarks.rig.watched_fleet import Fleet, Operator, add_all, running_fleet, until
from tests.fakes.running_registrar import install_certificates
from tests.fakes.software_identity import SoftwareIdentity

_MACHINES = 20
_INTERVAL_S = 0.25
_IMA_LINES = 100
_HONEST_AGENTS = 6
_TPM_S = 0.1  # what an agent's TPM takes to open a credential; real ones take longer
_AFTERWARDS_S = 2.0
_SAMPLE_S = 0.05
_HUGE_LISTS = 4
_HUGE_REPEATED = 3000  # times the usual list: 300,000 lines, some forty megabytes


@dataclass(frozen=True, slots=True)
class Span:
    """Some seconds of a daemon's life; what was not measured is empty."""

    lag_s: Sequence[float] = ()
    enrolments_s: Sequence[float] = ()
    failed_enrolments: int = 0
    peak_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scenario."""

    name: str
    quiet: Span
    hostile: Span
    afterwards_mb: float
    has_survived: bool = True


@dataclass(slots=True)
class MemoryWatch:
    """The resident memory of a daemon and all of its descendants, sampled."""

    pid: int
    peak_mb: float = 0.0

    def now_mb(self) -> float:
        """What it is now; 0 when the daemon has ended."""
        return sum(map(_resident_mb, _descendants(self.pid)))

    async def run(self) -> None:
        """Samples for ever."""
        while True:
            self.peak_mb = max(self.peak_mb, self.now_mb())
            await asyncio.sleep(_SAMPLE_S)


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _descendants(int(child))


def _resident_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


@dataclass(slots=True)
class WatchedVerifier:
    """A verifier with machines that pass."""

    daemon: Daemon
    fleet: Fleet
    operator: Operator
    target: Target
    authority: Path

    async def span(self, seconds: float, extra: Awaitable[None] | None = None) -> Span:
        """What is seen in some seconds, at the beginning of which `extra` is done."""
        self.fleet.report()
        async with _memory_of(self.daemon) as memory:
            if extra is not None:
                await extra
            await asyncio.sleep(seconds)
            report = await asyncio.to_thread(self.fleet.report)
        lags = [interval - _INTERVAL_S for interval in report.intervals_s]
        return Span(lag_s=lags, peak_mb=memory.peak_mb)


@dataclass(slots=True)
class WatchedRegistrar:
    """A registrar at which honest agents enrol, each again and again."""

    daemon: Daemon
    target: Target
    agents: Sequence[tuple[str, SoftwareIdentity]]

    async def span(self, seconds: float) -> Span:
        """Enrolments within some seconds; one that is not over by then counts as failed."""
        took_s: list[float] = []
        failed = 0

        async def enrol_again_and_again(agent_id: str, identity: SoftwareIdentity) -> None:
            nonlocal failed
            deadline = time.monotonic() + seconds
            while (began := time.monotonic()) < deadline:
                try:
                    async with asyncio.timeout(deadline - began + seconds):
                        await self._enrol(agent_id, identity)
                    took_s.append(time.monotonic() - began)
                except TimeoutError:
                    failed += 1
                await asyncio.sleep(_TPM_S)

        async with _memory_of(self.daemon) as memory:
            await asyncio.gather(*(enrol_again_and_again(*agent) for agent in self.agents))
        return Span(enrolments_s=took_s, failed_enrolments=failed, peak_mb=memory.peak_mb)

    async def _enrol(self, agent_id: str, identity: SoftwareIdentity) -> None:
        """Registers and activates as agents do, with as many attempts as it takes."""
        url = f"http://127.0.0.1:{self.target.port}/v2.5/agents/{agent_id}"
        connector = aiohttp.TCPConnector(local_addr=("127.200.0.1", 0))
        async with aiohttp.ClientSession(connector=connector) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.post(url, json=identity.registration()) as response:
                        registered = await response.json() if response.status == 200 else None
                    if registered is not None:
                        await asyncio.sleep(_TPM_S)
                        tag = identity.answer(registered["results"]["blob"], agent_id)
                        async with session.put(url, json={"auth_tag": tag}) as response:
                            if response.status == 200:
                                return
                await asyncio.sleep(_TPM_S)


@contextlib.asynccontextmanager
async def _memory_of(daemon: Daemon) -> AsyncIterator[MemoryWatch]:
    watch = MemoryWatch(daemon.pid)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()


@contextlib.asynccontextmanager
async def watched_verifier(directory: Path) -> AsyncIterator[WatchedVerifier]:
    """A verifier and its machines, after some rounds."""
    port, zmq_port = free_port(), free_port()
    options = {
        **_surroundings(directory),
        "KEYLIME_VERIFIER_PORT": str(port),
        "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(_INTERVAL_S),
        "KEYLIME_VERIFIER_NUM_WORKERS": "1",
        "KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": '["agent", "zeromq"]',
        "KEYLIME_VERIFIER_REVOCATIONS_ZMQ_IP": "127.0.0.1",
        "KEYLIME_VERIFIER_REVOCATIONS_ZMQ_PORT": str(zmq_port),
    }
    authority = directory / "cv_ca"
    async with aiohttp.ClientSession() as session:
        with Daemon("keylime_verifier", directory / "verifier.log", options) as daemon:
            daemon.wait_for("Listening on")
            operator = Operator(session, port, authority)
            machines = running_fleet(
                _MACHINES, ima_lines=_IMA_LINES, growth=0, processes=1, client_ca=authority / "cacert.crt"
            )
            with machines as fleet:
                await operator.add(fleet.identities[0], policy_of(_IMA_LINES))
                await until(fleet, lambda report: report.quotes > 0, 30)
                await add_all(operator, fleet.identities[1:])
                await until(fleet, lambda report: report.fewest_rounds >= 2, 60)
                yield WatchedVerifier(daemon, fleet, operator, Target(port, zmq_port), authority)


@contextlib.asynccontextmanager
async def watched_registrar(directory: Path) -> AsyncIterator[WatchedRegistrar]:
    """A registrar, and agents that have not registered yet."""
    install_certificates(directory)
    port = free_port()
    options = {
        **_surroundings(directory),
        "KEYLIME_REGISTRAR_PORT": str(port),
        "KEYLIME_REGISTRAR_TLS_PORT": str(free_port()),
        "KEYLIME_REGISTRAR_MAX_WORKERS": "1",
    }
    agents = [
        (f"{number:08x}-0000-4000-8000-000000000000", SoftwareIdentity()) for number in range(_HONEST_AGENTS)
    ]
    with Daemon("keylime_registrar", directory / "registrar.log", options) as daemon:
        daemon.wait_for("Listening on")
        yield WatchedRegistrar(daemon, Target(port, honest_ids=tuple(name for name, _ in agents)), agents)


def _surroundings(directory: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return {"KEYLIME_DIR": str(directory), **kept}


Scenario: TypeAlias = Callable[[str, float, Path], Coroutine[None, None, Outcome]]


def at_verifier(attack: Attack) -> Scenario:
    """Polling while strangers do what `attack` does."""

    async def play(name: str, seconds: float, directory: Path) -> Outcome:
        async with watched_verifier(directory) as verifier:
            quiet = await verifier.span(seconds)
            with under_attack(attack, verifier.target):
                hostile = await verifier.span(seconds)
            return await _outcome(name, verifier.daemon, quiet, hostile)

    return play


def at_registrar(attack: Attack) -> Scenario:
    """Honest enrolments while strangers do what `attack` does."""

    async def play(name: str, seconds: float, directory: Path) -> Outcome:
        async with watched_registrar(directory) as registrar:
            quiet = await registrar.span(seconds)
            with under_attack(attack, registrar.target):
                hostile = await registrar.span(seconds)
            return await _outcome(name, registrar.daemon, quiet, hostile)

    return play


async def huge_lists(name: str, seconds: float, directory: Path) -> Outcome:
    """Compromised agents whose first list is as long as that of a machine that has run for years."""
    async with watched_verifier(directory) as verifier:
        quiet = await verifier.span(seconds)
        machines = running_fleet(
            _HUGE_LISTS,
            ima_lines=_IMA_LINES,
            growth=0,
            processes=1,
            client_ca=verifier.authority / "cacert.crt",
            repeated=_HUGE_REPEATED,
            first_number=1000,
        )
        with machines as compromised:
            add = add_all(verifier.operator, compromised.identities)
            hostile = await verifier.span(seconds, add)
            return await _outcome(name, verifier.daemon, quiet, hostile)


async def _outcome(name: str, daemon: Daemon, quiet: Span, hostile: Span) -> Outcome:
    await asyncio.sleep(_AFTERWARDS_S)
    afterwards_mb = MemoryWatch(daemon.pid).now_mb()
    return Outcome(name, quiet, hostile, afterwards_mb, has_survived=afterwards_mb > 0)


SCENARIOS: dict[str, Scenario] = {
    "held bodies": at_verifier(strangers.hold_bodies),
    "costly evidence": at_verifier(strangers.ask_for_costly_judgements),
    "huge lists": huge_lists,
    "ZeroMQ flood": at_verifier(strangers.flood_zeromq),
    "register flood": at_registrar(strangers.flood_with_registrations),
    "BER flood": at_registrar(strangers.flood_with_ber),
    "pending flood": at_registrar(strangers.flood_pending),
}
ON_REQUEST: dict[str, Scenario] = {
    "handshakes": at_verifier(strangers.shake_hands),
    "identities": at_verifier(strangers.ask_for_identities),
}


def verification_us() -> float:
    """V: CPU time of one P-256 verification on this machine, the best of some batches."""
    key = ec.generate_private_key(ec.SECP256R1())
    message = b"as long as the attestation in a quote, more or less" * 3
    signature, public = key.sign(message, ec.ECDSA(hashes.SHA256())), key.public_key()
    batches = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(200):
            public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        batches.append((time.process_time() - began) / 200)
    return min(batches) * 1e6


def render(outcomes: Sequence[Outcome]) -> Table:
    table = Table(
        title=f"{_MACHINES} machines at {_INTERVAL_S:g} s; strangers; V = {verification_us():.0f} us"
    )
    for heading in (
        "",
        "polling lag p50 / p99 (ms)",
        "under attack",
        "enrolment p50 / p99 (ms)",
        "under attack",
        "RSS (MB)",
        "peak",
        "after",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            _two(outcome.quiet.lag_s),
            _two(outcome.hostile.lag_s),
            _enrolments(outcome.quiet),
            _enrolments(outcome.hostile),
            f"{outcome.quiet.peak_mb:.0f}",
            f"{outcome.hostile.peak_mb:.0f}",
            f"{outcome.afterwards_mb:.0f}" if outcome.has_survived else "ended",
        )
    return table


def _two(values_s: Sequence[float]) -> str:
    return "{:.0f} / {:.0f}".format(*percentiles_ms(values_s)) if len(values_s) > 1 else ""


def _enrolments(span: Span) -> str:
    failed = f" ({span.failed_enrolments} never)" if span.failed_enrolments else ""
    return _two(span.enrolments_s) + failed


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = SCENARIOS | ON_REQUEST
    parser.add_argument(
        "scenarios",
        nargs="*",
        help=f"some of: {', '.join(every)}; all but {' and '.join(ON_REQUEST)} by default",
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each span (default: %(default)s)")
    options = parser.parse_args()
    unknown = [name for name in options.scenarios if name not in every]
    if unknown:
        parser.error(f"no scenario {unknown[0]!r}")
    outcomes: list[Outcome] = []
    for name in options.scenarios or SCENARIOS:
        with tempfile.TemporaryDirectory(prefix="keylime-hostile-") as directory:
            outcomes.append(asyncio.run(every[name](name, options.seconds, Path(directory))))
    Console(width=150).print(render(outcomes))


if __name__ == "__main__":
    main()
