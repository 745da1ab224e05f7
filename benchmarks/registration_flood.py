"""How long agents need to enrol while strangers flood the registrar.

`python benchmarks/registration_flood.py`. The registrar is the real one, in its own process, with SQLite and
default options. Strangers are a process of their own with many loopback addresses, each in a network (/24) of
its own; they send as much as they can, of one kind at a time: registrations that nobody proves, certificates
that are dear to read, the agents' ids with other keys, wrong tags. Agents come one after the other, from
addresses that nobody else has, and do as they are told.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.rig.processes import Daemon, free_port
from tests.fakes.hostile_der import SHAPES
from tests.fakes.running_registrar import install_certificates
from tests.fakes.software_identity import SoftwareIdentity, b64
from tests.fakes.strangers import calling_from, hollow_registration, prefix_address

_AT_ONCE = 2  # connections of each stranger
_HONEST = 10_000  # networks from here on are those of agents
_WARM_UP_S = 3.0

_Call = tuple[str, str, dict[str, object]]
_Kind = Callable[[SoftwareIdentity, int], _Call]


def pending(identity: SoftwareIdentity, number: int) -> _Call:
    """A registration like any other, but for the proof."""
    return "POST", f"stranger-{number}", hollow_registration(identity, ip="10.0.0.1", port=9002)


def large(identity: SoftwareIdentity, number: int) -> _Call:
    """As much as may be kept of one."""
    own = b64(SHAPES["one large key"](20_000))
    return "POST", f"stranger-{number}", hollow_registration(identity, mtls_cert=own)


def dear(identity: SoftwareIdentity, number: int) -> _Call:
    """A certificate that takes the reader as long as any."""
    names = list(SHAPES)
    certificate = SHAPES[names[number % len(names)]](8192)
    return "POST", f"stranger-{number}", identity.registration(ekcert=b64(certificate))


def same_id(identity: SoftwareIdentity, number: int) -> _Call:
    """Other keys under the ids that the agents have."""
    return "POST", f"agent-{number % 8}", hollow_registration(identity)


def wrong_tags(_identity: SoftwareIdentity, number: int) -> _Call:
    """Guesses."""
    return "PUT", f"agent-{number % 8}", {"auth_tag": f"{number:096x}"}


KINDS: dict[str, _Kind] = {
    "registrations": pending,
    "large ones": large,
    "dear certificates": dear,
    "the agents' ids": same_id,
    "wrong tags": wrong_tags,
}


@dataclass(frozen=True, slots=True)
class Result:
    """Of one kind of flood."""

    label: str
    took_ms: Sequence[float]
    refusals: int
    flood: Counter[int]
    seconds: float
    rss_mib: float
    pending: int


def be_strangers(port: int, prefixes: int, kind: str, answers: MutableSequence[int]) -> None:
    """Floods until it is killed; `answers` counts, by status."""

    identity = SoftwareIdentity()

    async def one(prefix: int, connection: int) -> None:
        async with calling_from(prefix_address(prefix)) as session:
            number = prefix * 1_000_000 + connection * 100_000
            while True:
                number += 1
                method, agent_id, body = KINDS[kind](identity, number)
                url = f"http://127.0.0.1:{port}/v2.5/agents/{agent_id}"
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.request(method, url, json=body) as response:
                        answers[min(response.status, 599)] += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(one(prefix, n) for prefix in range(prefixes) for n in range(_AT_ONCE)))

    asyncio.run(all_of_them())


@contextlib.contextmanager
def flooded(port: int, prefixes: int, kind: str | None, answers: MutableSequence[int]) -> Iterator[None]:
    """Strangers of this kind, if of any, for a while."""
    if kind is None:
        yield
        return
    context = multiprocessing.get_context("fork")
    strangers = context.Process(target=be_strangers, args=(port, prefixes, kind, answers))
    strangers.start()
    try:
        time.sleep(_WARM_UP_S)
        yield
        if not strangers.is_alive():
            raise RuntimeError("the strangers have gone")
    finally:
        strangers.kill()
        strangers.join()


async def enrol(port: int, number: int, identity: SoftwareIdentity) -> tuple[float, int]:
    """How long one agent needs, in seconds, and how often it was told to come back later."""
    url = f"http://127.0.0.1:{port}/v2.5/agents/agent-{number}"
    began, refusals = time.perf_counter(), 0
    async with calling_from(prefix_address(_HONEST + number)) as session:
        blob = ""
        while True:
            method, body = (
                ("PUT", {"auth_tag": identity.answer(blob, f"agent-{number}")})
                if blob
                else (
                    "POST",
                    identity.registration(),
                )
            )
            async with session.request(method, url, json=body) as response:
                if response.status == 429:
                    refusals += 1
                    await asyncio.sleep(int(response.headers["Retry-After"]))
                elif response.status != 200:
                    raise RuntimeError(f"{method}: {response.status} {await response.text()}")
                elif blob:
                    return time.perf_counter() - began, refusals
                else:
                    blob = (await response.json())["results"]["blob"]


def measure(kind: str | None, agents: Sequence[SoftwareIdentity], prefixes: int, directory: Path) -> Result:
    """Agents that enrol one after the other, in the middle of a flood or without one."""
    install_certificates(directory)
    port = free_port()
    options = {
        "KEYLIME_DIR": str(directory),
        "KEYLIME_REGISTRAR_PORT": str(port),
        "KEYLIME_REGISTRAR_TLS_PORT": str(free_port()),
        "KEYLIME_REGISTRAR_MAX_WORKERS": "1",
    }
    with Daemon("keylime_registrar", directory / "registrar.log", options) as daemon:
        daemon.wait_for("Listening on")
        began = time.perf_counter()
        answers = multiprocessing.Array("L", 600, lock=False)
        with flooded(port, prefixes, kind, answers):
            seen = [asyncio.run(enrol(port, number, identity)) for number, identity in enumerate(agents)]
        seconds = time.perf_counter() - began
        with contextlib.closing(sqlite3.connect(directory / "reg_data.sqlite")) as connection:
            waiting = connection.execute("SELECT count(*) FROM pending_registrations").fetchone()[0]
        return Result(
            kind or "nobody",
            [took_s * 1e3 for took_s, _ in seen],
            sum(refusals for _, refusals in seen),
            Counter({code: count for code, count in enumerate(answers) if count}),
            seconds,
            daemon.memory_kb / 1024,
            waiting,
        )


def render(results: Sequence[Result], prefixes: int) -> Table:
    table = Table(title=f"Agents that enrol while {prefixes} prefixes flood the registrar")
    for number, heading in enumerate(
        ("flood of", "median (ms)", "worst (ms)", "429 to agents", "flood, 1/s", "answers", "pending", "MiB")
    ):
        table.add_column(heading, justify="right" if number else "left")
    for result in results:
        table.add_row(
            result.label,
            f"{statistics.median(result.took_ms):.0f}",
            f"{max(result.took_ms):.0f}",
            str(result.refusals),
            f"{sum(result.flood.values()) / result.seconds:.0f}",
            " ".join(f"{code}:{count}" for code, count in sorted(result.flood.items())),
            str(result.pending),
            f"{result.rss_mib:.0f}",
        )
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Enrolment while strangers flood the registrar.")
    parser.add_argument("--agents", type=int, default=30, help="how many (default: %(default)s)")
    parser.add_argument("--prefixes", type=int, default=64, help="of strangers (default: %(default)s)")
    arguments = parser.parse_args()
    agents = [SoftwareIdentity() for _ in range(arguments.agents)]
    results = []
    for kind in (None, *KINDS):
        with tempfile.TemporaryDirectory(prefix="keylime-flood-") as directory:
            results.append(measure(kind, agents, arguments.prefixes, Path(directory)))
    Console(width=150).print(render(results, arguments.prefixes))


if __name__ == "__main__":
    main()
