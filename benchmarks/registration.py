"""CPU of the registrar for each agent that registers and activates: `python benchmarks/registration.py`.

The registrar is the real one, in its own process, with SQLite and default options. The agents are keys in
memory, RSA-2048 EKs that open the sealed credential and P-256 AKs. Every agent has a connection of its own.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.rig.processes import Daemon, free_port
from tests.fakes.running_registrar import install_certificates
from tests.fakes.software_identity import SoftwareIdentity

BUDGET_MS = 2.5
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Agent:
    agent_id: str
    identity: SoftwareIdentity


@dataclass(frozen=True, slots=True)
class Result:
    """Of one pass over all agents."""

    label: str
    cpu_ms: float
    took_ms: float


async def enrol(port: int, agent: Agent) -> None:
    """Registers and activates over one connection."""
    url = f"http://127.0.0.1:{port}/v2.5/agents/{agent.agent_id}"
    async with aiohttp.ClientSession() as session:
        async with session.post(url, json=agent.identity.registration()) as response:
            registered = await response.json()
        tag = agent.identity.answer(registered["results"]["blob"], agent.agent_id)
        async with session.put(url, json={"auth_tag": tag}) as response:
            if response.status != 200:
                raise RuntimeError(f"activating an agent: {response.status} {await response.text()}")


async def enrol_all(daemon: Daemon, port: int, agents: Sequence[Agent], label: str) -> Result:
    """Some agents at a time, as after a power cut."""
    waiting = iter(agents)
    cpu_before_s, began = daemon.exact_cpu_s, time.perf_counter()

    async def enrol_some() -> None:
        for agent in waiting:
            await enrol(port, agent)

    await asyncio.gather(*(enrol_some() for _ in range(_AT_ONCE)))
    took_s = time.perf_counter() - began
    return Result(label, (daemon.exact_cpu_s - cpu_before_s) / len(agents) * 1e3, took_s / len(agents) * 1e3)


async def measure(agents: Sequence[Agent], directory: Path) -> list[Result]:
    """The agents warm the registrar up by their first registration; the later ones are as good as new."""
    install_certificates(directory)
    port = free_port()
    options = {
        "KEYLIME_DIR": str(directory),
        "KEYLIME_REGISTRAR_PORT": str(port),
        "KEYLIME_REGISTRAR_TLS_PORT": str(free_port()),
    }
    with Daemon("keylime_registrar", directory / "registrar.log", options) as daemon:
        daemon.wait_for("Listening on")
        return [
            await enrol_all(daemon, port, agents, "first time"),
            await enrol_all(daemon, port, agents, "again, with the same keys"),
        ]


def render(results: Sequence[Result], count: int) -> Table:
    table = Table(title=f"Registrar, {count} agents: registration and activation")
    for number, heading in enumerate(("", "CPU (ms)", f"budget {BUDGET_MS:g}", "time (ms)")):
        table.add_column(heading, justify="right" if number else "left")
    for result in results:
        kept = "kept" if result.cpu_ms <= BUDGET_MS else "missed"
        table.add_row(result.label, f"{result.cpu_ms:.2f}", kept, f"{result.took_ms:.1f}")
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="CPU of the registrar for each registration and activation.")
    parser.add_argument("--agents", type=int, default=30, help="how many (default: %(default)s)")
    count = parser.parse_args().agents
    agents = [
        Agent(f"{number:08x}-0000-4000-8000-000000000000", SoftwareIdentity()) for number in range(count)
    ]
    with tempfile.TemporaryDirectory(prefix="keylime-registration-") as directory:
        Console().print(render(asyncio.run(measure(agents, Path(directory))), count))


if __name__ == "__main__":
    main()
