"""What machines that attest by themselves cost the verifier: `python benchmarks/push.py`.

The verifier is the real one, in a process of its own, with one worker and SQLite. The machines are as those
in the field, with P-256 keys in memory and IMA lists of which all but one line are known. CPU is that of the
verifier's processes, verdicts and what is written of them included, without that of an idle one, which is
measured before; latencies at the pace are those of the answer to evidence. V is a P-256 verification of this
machine, by which machines can be compared.
"""

import argparse
import asyncio
import base64
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from os import getloadavg
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.rig.cost import allow_descriptors, verification_us
from benchmarks.rig.percentiles import percentiles_ms
from benchmarks.rig.processes import Daemon, free_port
from benchmarks.rig.pushers import Fleet as Machines
from benchmarks.rig.pushers import LeanPushAgent, Pace, PusherProcess, agent_id_of
from keylime.tpm.keys import SignatureScheme
from tests.fakes.attesting_agent import policy_of
from tests.fakes.eventual import eventually
from tests.fakes.field_push_agent import FieldPushAgent, Refused
from tests.fakes.running_verifier import install_certificates, verifier_authority
from tests.fakes.software_ak import SoftwareAk
from tests.fakes.tls_material import client_context

BUDGET_CPU_MS = 1.2  # of an attestation, the connection kept
BUDGET_P99_MS = 50.0  # of the answer to evidence
PERIOD_S = 10.0
_AT_ONCE = 4
_IDLE_S = 8.0
_PROCESSES = 2  # of the machines that keep a pace
_PACED_ROUNDS = 3  # after one in which they are got to know
_WIDTH = 110
_FILES = {"boot_aggregate": b"", **{f"/usr/bin/program-{number}": b"content" for number in range(99)}}
_MORE = "/usr/bin/program-0"
_Work = Callable[[FieldPushAgent], Awaitable[object]]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Result:
    """CPU of the verifier for each piece of work, and what that took the machine, in milliseconds."""

    label: str
    cpu_ms: float
    per_s: float
    took_s: Sequence[float] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Machines before a verifier."""

    agents: Sequence[FieldPushAgent]  # those that live in this process
    ids: Sequence[str]  # of all
    ak: str
    daemon: Daemon
    port: int
    idle_share: float  # of a processor, by a verifier that nobody comes to

    @property
    def count(self) -> int:
        """How many."""
        return len(self.ids)

    async def enrol(self) -> None:
        """Adds all of them, each with a policy of its own."""
        administrator = client_context(verifier_authority(), verifier_authority().issue("operator"))
        policy = base64.b64encode(policy_of(_FILES).encode()).decode()
        async with aiohttp.ClientSession(base_url=f"https://127.0.0.1:{self.port}") as session:
            for agent_id in self.ids:
                body = {
                    "attestation_mode": "push",
                    "tpm_policy": '{"mask": "0x0"}',
                    "metadata": "{}",
                    "runtime_policy": policy,
                    "runtime_policy_name": "",
                    "mb_policy": None,
                    "mb_policy_name": "",
                    "ima_sign_verification_keys": "",
                    "revocation_key": "",
                    "accept_tpm_hash_algs": ["sha256"],
                    "accept_tpm_encryption_algs": ["ecc"],
                    "accept_tpm_signing_algs": ["ecdsa"],
                    "ak_tpm": self.ak,
                    "supported_version": "2.6",
                }
                path = f"/v2.6/agents/{agent_id}"
                async with session.post(path, json=body, ssl=administrator) as answer:
                    if answer.status != 200:
                        raise RuntimeError(f"adding an agent: {answer.status} {await answer.text()}")

    async def forget(self, agent: FieldPushAgent) -> None:
        """Deletes an agent, which may be added again."""
        administrator = client_context(verifier_authority(), verifier_authority().issue("operator"))
        path = f"https://127.0.0.1:{self.port}/v2.6/agents/{agent.agent_id}"
        async with aiohttp.ClientSession() as session, session.delete(path, ssl=administrator) as answer:
            if answer.status != 200:
                raise RuntimeError(f"deleting an agent: {answer.status} {await answer.text()}")

    async def demand_passes(self, count: int) -> None:
        """Raises RuntimeError unless every machine has passed so often, and TimeoutError after a while."""
        administrator = client_context(verifier_authority(), verifier_authority().issue("operator"))

        async def have_passed(session: aiohttp.ClientSession) -> bool:
            async with session.get("/v2.6/agents/?bulk=1", ssl=administrator) as answer:
                shown = (await answer.json())["results"]
            if any(one["attestation_status"] == "FAIL" for one in shown.values()):
                raise RuntimeError("a machine failed")
            passed = [one["attestation_count"] >= count for one in shown.values()]
            return passed == [True] * self.count

        async with aiohttp.ClientSession(base_url=f"https://127.0.0.1:{self.port}") as session:
            await eventually(partial(have_passed, session))

    async def judged(self) -> int:
        """How many attestations have passed in all, once each agent's latest is judged."""
        administrator = client_context(verifier_authority(), verifier_authority().issue("operator"))

        async def show(session: aiohttp.ClientSession, path: str) -> Any:
            async with session.get(path, ssl=administrator) as answer:
                return await answer.json()

        async def is_judged(session: aiohttp.ClientSession, path: str) -> bool:
            latest = await show(session, path)
            return bool(latest["data"]["attributes"]["stage"] == "verification_complete")

        passes = 0
        async with aiohttp.ClientSession(base_url=f"https://127.0.0.1:{self.port}") as session:
            for agent in self.agents:
                latest = f"/v3.0/agents/{agent.agent_id}/attestations/latest"
                await eventually(partial(is_judged, session, latest))
                found = (await show(session, f"/v2.6/agents/{agent.agent_id}"))["results"]
                if found["attestation_status"] == "FAIL":
                    raise RuntimeError(f"{agent.agent_id} failed: {found['last_findings']}")
                passes += found["attestation_count"]
        return passes

    async def each(self, label: str, rounds: int, work: _Work, *, has_verdicts: bool) -> Result:
        """`work` of all agents, a few at a time, so many times each; CPU is that of what was judged of it."""
        took_s: list[float] = []

        async def some(agents: Sequence[FieldPushAgent]) -> None:
            for _ in range(rounds):
                for agent in agents:
                    began = time.perf_counter()
                    await _insisting(work, agent)
                    took_s.append(time.perf_counter() - began)

        before = await self.judged() if has_verdicts else 0
        cpu_before_s, began = self.daemon.cpu_s, time.perf_counter()
        await asyncio.gather(*(some(self.agents[number::_AT_ONCE]) for number in range(_AT_ONCE)))
        whole_s = time.perf_counter() - began
        cpu_s = self.daemon.cpu_s - cpu_before_s - self.idle_share * whole_s
        count = await self.judged() - before if has_verdicts else len(took_s)
        return Result(label, cpu_s / count * 1e3, len(took_s) / whole_s, took_s)


async def _insisting(work: Callable[[FieldPushAgent], Awaitable[_Result]], agent: FieldPushAgent) -> _Result:
    """Again where the verifier could not: on a machine that has too much to do its database may be late."""
    while True:
        try:
            return await work(agent)
        except Refused as refused:
            if refused.answer.code != 503:
                raise


async def log_in(agent: FieldPushAgent) -> None:
    await agent.log_in()


async def attest(agent: FieldPushAgent) -> None:
    """One more file was run, and the machine attests over the connection that it has."""
    agent.machine.measure(_MORE, _FILES[_MORE])
    await agent.attest()


async def attest_anew(agent: FieldPushAgent) -> None:
    """The same over a connection of its own."""
    await agent.hang_up()
    await attest(agent)


async def at_pace(fleet: Fleet, processes: Sequence[PusherProcess], rounds: int) -> Result:
    """All machines attest every `PERIOD_S`, evenly spread: the answer to evidence alone is timed."""
    began = time.monotonic() + 1
    pace = Pace(began, PERIOD_S, fleet.count, rounds)
    attesting = asyncio.gather(*(process.attest(pace) for process in processes))
    await asyncio.sleep(began + PERIOD_S - time.monotonic())
    cpu_before_s = fleet.daemon.cpu_s
    await asyncio.sleep(pace.due(0, rounds + 1) - time.monotonic())
    whole_s = rounds * PERIOD_S
    cpu_s = fleet.daemon.cpu_s - cpu_before_s - fleet.idle_share * whole_s
    results = await attesting
    took_s = [one for some, _ in results for one in some]
    retries = sum(count for _, count in results)
    label = f"every {PERIOD_S:g} s" + (f" ({retries} again)" if retries else "")
    return Result(label, cpu_s / len(took_s) * 1e3, len(took_s) / whole_s, took_s)


async def measure(
    count: int, paced: int, rounds: int, directory: Path, key: SoftwareAk, processes: Sequence[PusherProcess]
) -> list[Result]:
    install_certificates(directory)
    port = free_port()
    options = {
        "DIR": str(directory),
        "VERIFIER_PORT": str(port),
        "VERIFIER_TLS_DIR": "default",
        "VERIFIER_NUM_WORKERS": "1",
        "VERIFIER_SESSION_CREATE_RATE_LIMIT_PER_IP": "1000000",
        "VERIFIER_SESSION_CREATE_RATE_LIMIT_PER_AGENT": "1000000",
        "VERIFIER_SESSION_LIFETIME": "3600",
    }
    environ = {f"KEYLIME_{name}": value for name, value in options.items()}
    agents = Machines(0, count, key, _FILES, client_context(verifier_authority())).agents(port)

    @asynccontextmanager
    async def before(
        interval_s: float, some: Sequence[LeanPushAgent], ids: Sequence[str]
    ) -> AsyncIterator[Fleet]:
        with Daemon(
            "keylime_verifier",
            directory / "verifier.log",
            {**environ, "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(interval_s)},
        ) as daemon:
            daemon.wait_for("Listening on")
            async with AsyncExitStack() as stack:
                for agent in some:
                    await stack.enter_async_context(agent)
                ak = base64.b64encode(key.tpm2b_public).decode()
                yield Fleet(some, ids, ak, daemon, port, await _idle_share(daemon))

    # Rounded to no pause; five of it are a machine's silence.
    async with before(0.49, agents, [agent.agent_id for agent in agents]) as fleet:
        results = await _without_pause(fleet, rounds)
    if not paced:
        return results
    async with before(PERIOD_S, [], [agent_id_of(number) for number in range(paced)]) as fleet:
        await fleet.enrol()
        await asyncio.gather(*(process.log_in(port) for process in processes))
        result = await at_pace(fleet, processes, _PACED_ROUNDS)
        await fleet.demand_passes(_PACED_ROUNDS + 1)
        return [*results, result]


async def _idle_share(daemon: Daemon) -> float:
    await asyncio.sleep(2.0)  # what a start leaves to do
    before_s, began = daemon.cpu_s, time.perf_counter()
    await asyncio.sleep(_IDLE_S)
    return (daemon.cpu_s - before_s) / (time.perf_counter() - began)


async def _without_pause(fleet: Fleet, rounds: int) -> list[Result]:
    await fleet.enrol()
    session = await fleet.each("session", 3, log_in, has_verdicts=False)
    await fleet.each("", 1, attest, has_verdicts=False)
    await fleet.judged()
    kept = await fleet.each("kept alive", rounds, attest, has_verdicts=True)
    anew = await fleet.each("new TLS each", rounds, attest_anew, has_verdicts=True)
    for agent in fleet.agents:
        await fleet.forget(agent)
    return [session, kept, anew]


def render(results: Sequence[Result], count: int, paced: int, v_us: float) -> Table:
    load = getloadavg()[0]
    title = f"Verifier with {count} pushing machines; {paced} at the pace; V = {v_us:.0f} us, load {load:.0f}"
    table = Table(title=title)
    for number, heading in enumerate(
        ("", "CPU (ms)", "in V", "budget", "a second", "p50 (ms)", "p99 (ms)", "budget")
    ):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for result in results:
        median, most = percentiles_ms(result.took_s)
        is_kept = result.label.startswith("kept")
        table.add_row(
            result.label,
            f"{result.cpu_ms:.2f}",
            f"{result.cpu_ms / v_us * 1e3:.0f}",
            _kept(result.cpu_ms, BUDGET_CPU_MS) if is_kept else "",
            f"{result.per_s:.0f}",
            f"{median:.1f}",
            f"{most:.1f}",
            _kept(most, BUDGET_P99_MS) if result.label.startswith("every") else "",
        )
    return table


def _kept(value: float, budget: float) -> str:
    return f"{budget:g} {'kept' if value <= budget else 'missed'}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="What machines that attest by themselves cost the verifier.")
    parser.add_argument("--agents", type=int, default=40, help="how many (default: %(default)s)")
    parser.add_argument("--paced", type=int, default=1000, help="how many every 10 s (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="of each agent (default: %(default)s)")
    arguments = parser.parse_args()
    count, paced = arguments.agents, arguments.paced
    allow_descriptors(2 * paced + 512)
    key, tls = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA), client_context(verifier_authority())
    part = -(-paced // _PROCESSES)
    processes = [
        PusherProcess(Machines(first, min(part, paced - first), key, _FILES, tls))
        for first in range(0, paced, part or 1)
    ]
    try:
        with tempfile.TemporaryDirectory(prefix="keylime-push-") as directory:
            measuring = measure(count, paced, arguments.rounds, Path(directory), key, processes)
            results = asyncio.run(measuring)
    finally:
        for process in processes:
            process.end()
    Console(width=_WIDTH).print(render(results, count, paced, verification_us()))


if __name__ == "__main__":
    main()
