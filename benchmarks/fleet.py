"""A fleet on one verifier: CPU for each attestation, memory and database for each agent, lag, API answers.

The verifier is the real one, in its own process, with SQLite and default options but for the interval. The
machines are simulated in other processes and send genuine quotes over mutual TLS. All figures are taken from
outside: CPU and memory from /proc, rounds from machines and database, latencies as a client sees them.
"""

import argparse
import asyncio
import base64
import contextlib
import multiprocessing
import sqlite3
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.rig.machines import FleetPlan, FleetReport, MachineIdentity, policy_of, run_machines
from benchmarks.rig.processes import Daemon, free_port

_POLICY = "fleet"
_FILLER_PATHS = 10_000
_ADDED_AT_ONCE = 16
_SETTLING_ROUNDS = 3
_API_CALLS = 200
_API_PAUSE_S = 0.01
BUDGET_CPU_MS = 0.6
BUDGET_KB = 40
BUDGET_API_P99_MS = 50


@dataclass(frozen=True, slots=True)
class Options:
    agents: tuple[int, ...]
    interval_s: float
    seconds: float
    ima_lines: int
    growth: int
    processes: int


@dataclass(frozen=True, slots=True)
class Result:
    """One size of fleet."""

    agents: int
    rounds_per_s: float
    cpu_ms: float
    fleet_cpu_ms: float
    adding_ms: float
    rss_mb: float
    rss_kb_per_agent: float
    database_kb_per_agent: float
    lag_ms: tuple[float, float]
    api_ms: tuple[float, float]

    @property
    def kb_per_agent(self) -> float:
        return self.rss_kb_per_agent + self.database_kb_per_agent


class Fleet:
    """The processes of simulated machines, seen from the one that measures."""

    def __init__(self, controls: Sequence[Connection]) -> None:
        self._controls = controls
        self.identities: list[MachineIdentity] = [one for control in controls for one in control.recv()]

    def report(self) -> FleetReport:
        """What happened since the last report."""
        for control in self._controls:
            control.send(None)
        reports: list[FleetReport] = [control.recv() for control in self._controls]
        return FleetReport(
            sum(report.quotes for report in reports),
            min(report.fewest_rounds for report in reports),
            sum(report.connections for report in reports),
            [interval for report in reports for interval in report.intervals_s],
            sum(report.cpu_s for report in reports),
        )


@contextlib.contextmanager
def running_fleet(count: int, options: Options, client_ca: Path) -> Iterator[Fleet]:
    """Machines that listen; they end with the block."""
    spawn = multiprocessing.get_context("spawn")
    share = -(-count // options.processes)
    with contextlib.ExitStack() as stack:
        controls = []
        for first in range(0, count, share):
            plan = FleetPlan(min(share, count - first), first, options.ima_lines, options.growth, client_ca)
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=run_machines, args=(plan, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join, 10)
            stack.callback(ours.close)
            controls.append(ours)
        yield Fleet(controls)


class Operator:
    """Calls the verifier's API with the client certificate that it made."""

    def __init__(self, session: aiohttp.ClientSession, port: int, authority: Path) -> None:
        self._session = session
        self._url = f"https://127.0.0.1:{port}/v2.5/agents/"
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.load_verify_locations(authority / "cacert.crt")
        self._tls.load_cert_chain(authority / "client-cert.crt", authority / "client-private.pem")

    async def add(self, machine: MachineIdentity, policy: str) -> None:
        """Adds an agent held to the shared policy; the first one brings its text."""
        body = {
            "cloudagent_ip": "127.0.0.1",
            "cloudagent_port": machine.port,
            "tpm_policy": '{"mask": "0x400"}',
            "metadata": "{}",
            "runtime_policy": base64.b64encode(policy.encode()).decode(),
            "runtime_policy_name": _POLICY,
            "mb_policy": None,
            "mb_policy_name": "",
            "ima_sign_verification_keys": "",
            "revocation_key": "",
            "accept_tpm_hash_algs": ["sha512", "sha384", "sha256"],
            "accept_tpm_encryption_algs": ["ecc", "rsa"],
            "accept_tpm_signing_algs": ["ecschnorr", "ecdsa", "rsassa"],
            "ak_tpm": machine.ak_public,
            "mtls_cert": machine.certificate_pem,
            "supported_version": "2.5",
        }
        async with self._session.post(self._url + machine.agent_id, json=body, ssl=self._tls) as response:
            if response.status != 200:
                raise RuntimeError(f"adding an agent: {response.status} {await response.text()}")

    async def show(self, machine: MachineIdentity) -> float:
        """Seconds until the status of an agent is here. Raises RuntimeError unless it passes."""
        started = time.perf_counter()
        async with self._session.get(self._url + machine.agent_id, ssl=self._tls) as response:
            answer = await response.json()
        took_s = time.perf_counter() - started
        if answer["results"]["attestation_status"] != "PASS":
            raise RuntimeError(f"{machine.agent_id} does not pass: {answer}")
        return took_s


async def add_all(operator: Operator, machines: Sequence[MachineIdentity]) -> None:
    """Adds machines, some at a time."""
    waiting = iter(machines)

    async def add_some() -> None:
        for machine in waiting:
            await operator.add(machine, "")

    await asyncio.gather(*(add_some() for _ in range(_ADDED_AT_ONCE)))


async def until(fleet: Fleet, condition: Callable[[FleetReport], bool], limit_s: float) -> None:
    """Returns when a report fulfils `condition`."""
    deadline = time.monotonic() + limit_s
    while not condition(report := fleet.report()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the machines are not asked as they should be: {report}")
        await asyncio.sleep(0.2)


def stored_rounds(database: Path) -> int:
    """How many attestations the verifier has recorded."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rounds: int = connection.execute("SELECT sum(attestation_count) FROM agents").fetchone()[0]
    return rounds


def percentiles_ms(values_s: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    ordered = statistics.quantiles(values_s, n=100, method="inclusive")
    return ordered[49] * 1e3, ordered[98] * 1e3


async def measure(count: int, options: Options, directory: Path, session: aiohttp.ClientSession) -> Result:
    """Runs a verifier with `count` agents."""
    port = free_port()
    database = directory / "cv_data.sqlite"
    daemon = Daemon(
        "keylime_verifier",
        directory / "verifier.log",
        {
            "KEYLIME_DIR": str(directory),
            "KEYLIME_VERIFIER_PORT": str(port),
            "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(options.interval_s),
        },
    )
    with daemon:
        daemon.wait_for("Listening on")
        operator = Operator(session, port, directory / "cv_ca")
        with running_fleet(count, options, directory / "cv_ca" / "cacert.crt") as fleet:
            first, *others = fleet.identities
            await operator.add(first, policy_of(max(options.ima_lines, _FILLER_PATHS)))
            await until(fleet, lambda report: report.quotes > 0, 10 + 3 * options.interval_s)
            # What all agents share is there now: the policy, its file in the database, the known IMA lines.
            empty_kb, database_bytes, started_s = daemon.rss_kb, bytes_of(database), daemon.cpu_s
            await add_all(operator, others)
            added_s = daemon.cpu_s - started_s
            limit_s = 30 + 5 * options.interval_s
            await until(fleet, lambda report: report.fewest_rounds >= _SETTLING_ROUNDS, limit_s)

            before, stored_before = fleet.report(), stored_rounds(database)
            began, cpu_before_s = time.monotonic(), daemon.cpu_s
            await asyncio.sleep(options.seconds)
            steady_s, lasted_s = daemon.cpu_s - cpu_before_s, time.monotonic() - began
            steady = fleet.report()
            full_kb = daemon.rss_kb

            api_s = []
            for number in range(_API_CALLS):
                api_s.append(await operator.show(fleet.identities[number % count]))
                await asyncio.sleep(_API_PAUSE_S)
            await asyncio.sleep(1.2)  # the last batch is written
            check(steady, stored_rounds(database) - stored_before)
            return Result(
                agents=count,
                rounds_per_s=steady.quotes / lasted_s,
                cpu_ms=steady_s / steady.quotes * 1e3,
                fleet_cpu_ms=(steady.cpu_s - before.cpu_s) / steady.quotes * 1e3,
                adding_ms=added_s / len(others) * 1e3,
                rss_mb=full_kb / 1024,
                rss_kb_per_agent=(full_kb - empty_kb) / len(others),
                database_kb_per_agent=(bytes_of(database) - database_bytes) / 1024 / len(others),
                lag_ms=percentiles_ms([interval - options.interval_s for interval in steady.intervals_s]),
                api_ms=percentiles_ms(api_s),
            )


def check(steady: FleetReport, stored: int) -> None:
    """What was measured must have been the steady state: no handshakes, and every round a recorded pass."""
    if steady.connections:
        raise RuntimeError(f"{steady.connections} connections were not kept alive")
    if stored < steady.quotes:
        raise RuntimeError(f"{steady.quotes} quotes were sent, {stored} passes recorded")


def bytes_of(database: Path) -> int:
    """The tables on disk, without the write-ahead log, whose size follows from the load."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
        size: int = connection.execute("PRAGMA page_size").fetchone()[0]
    return pages * size


def render(results: Sequence[Result], options: Options) -> Table:
    growth = f", {options.growth} more in every round" if options.growth else ""
    lines = f"{options.ima_lines} IMA lines{growth}"
    table = Table(title=f"Verifier, an attestation of each agent every {options.interval_s:g} s, {lines}")
    columns = ("agents", *(str(result.agents) for result in results), "budget")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")

    def row(name: str, values: Sequence[str], budget: str = "") -> None:
        table.add_row(name, *values, budget)

    row("attestations/s", [f"{result.rounds_per_s:.0f}" for result in results])
    row("CPU per attestation (ms)", [f"{result.cpu_ms:.3f}" for result in results], f"{BUDGET_CPU_MS}")
    row("CPU per added agent (ms)", [f"{result.adding_ms:.1f}" for result in results])
    row("resident memory (MB)", [f"{result.rss_mb:.0f}" for result in results])
    row("memory per agent (KB)", [f"{result.rss_kb_per_agent:.1f}" for result in results])
    row("database per agent (KB)", [f"{result.database_kb_per_agent:.1f}" for result in results])
    row("both per agent (KB)", [f"{result.kb_per_agent:.1f}" for result in results], f"{BUDGET_KB}")
    row("lag p50 / p99 (ms)", ["{:.0f} / {:.0f}".format(*result.lag_ms) for result in results])
    row(
        "GET /agents/{id} p50 / p99 (ms)",
        ["{:.1f} / {:.1f}".format(*result.api_ms) for result in results],
        f"- / {BUDGET_API_P99_MS}",
    )
    row("the machines' own CPU (ms)", [f"{result.fleet_cpu_ms:.3f}" for result in results])
    table.caption = "lag: time between two quotes of one agent beyond the interval, which is jittered by 5 %"
    return table


def parse_options() -> Options:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--agents", default="400", help="sizes of the fleet (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=2.0, help="quote_interval in seconds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long to measure (%(default)s)")
    parser.add_argument("--ima-lines", type=int, default=100, help="lines of each IMA list (%(default)s)")
    parser.add_argument("--growth", type=int, default=0, help="known lines measured anew each round")
    parser.add_argument("--processes", type=int, default=1, help="processes of machines (%(default)s)")
    given = parser.parse_args()
    sizes = tuple(int(size) for size in given.agents.split(","))
    return Options(sizes, given.interval, given.seconds, given.ima_lines, given.growth, given.processes)


async def run(options: Options) -> list[Result]:
    results = []
    for count in options.agents:
        with tempfile.TemporaryDirectory(prefix="keylime-fleet-") as directory:
            async with aiohttp.ClientSession() as session:
                results.append(await measure(count, options, Path(directory), session))
    return results


def main() -> None:
    """Prints the table."""
    options = parse_options()
    Console(width=100).print(render(asyncio.run(run(options)), options))


if __name__ == "__main__":
    main()
