"""A fleet falls at once and is silent: what that costs the verifier, and the machines that are still sound.

The failed agents and the revocations about each of them appear in the verifier's database in one moment, as
another verifier of the site would write them. All are to be told of all; nobody answers at their ports.
"""

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from benchmarks.rig.machines import policy_of
from benchmarks.rig.percentiles import percentiles_ms
from benchmarks.rig.processes import Daemon, free_port
from benchmarks.rig.stored import Stored, stored_in
from benchmarks.rig.watched_fleet import Fleet, Operator, add_all, running_fleet, until

_IMA_LINES = 100
_MESSAGE = 2000  # characters
_SETTLING_ROUNDS = 3
_API_CALLS = 100


@dataclass(frozen=True, slots=True)
class Span:
    """Some seconds in the life of the verifier."""

    name: str
    cpu_share: float
    memory_mb: float
    database_mb: float
    rounds_per_s: float
    lag_ms: tuple[float, float]
    api_ms: tuple[float, float]


async def watch(
    name: str, daemon: Daemon, fleet: Fleet, operator: Operator, database: Stored, interval_s: float
) -> Span:
    """What is seen while an operator asks about one agent after another."""
    fleet.report()
    began, cpu_s = time.monotonic(), daemon.cpu_s
    api_s = []
    for number in range(_API_CALLS):
        api_s.append(await operator.show(fleet.identities[number % len(fleet.identities)]))
        await asyncio.sleep(0.1)
    lasted_s = time.monotonic() - began
    report = fleet.report()
    return Span(
        name=name,
        cpu_share=(daemon.cpu_s - cpu_s) / lasted_s,
        memory_mb=daemon.memory_kb / 1024,
        database_mb=database.bytes / 2**20,
        rounds_per_s=report.quotes / lasted_s,
        lag_ms=percentiles_ms([interval - interval_s for interval in report.intervals_s]),
        api_ms=percentiles_ms(api_s),
    )


def fall(database: Stored, count: int) -> None:
    """Adds agents that have failed, and the revocations of all."""
    engine = sa.create_engine(database.url)
    changed = {
        "agent_id": "'fallen-' || i",
        "incarnation": "'fallen-' || i",
        "port": "1",
        "operational_state": "9",
        "is_polled": "false",
    }
    rows = {
        table: ", ".join(changed.get(column["name"], column["name"]) for column in columns)
        for table in ("agents", "progress")
        for columns in (sa.inspect(engine).get_columns(table),)
    }
    message = "'" + "x" * _MESSAGE + "'"
    numbers = f"WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < {count})"  # noqa: S608
    with engine.begin() as connection:
        for statement in (
            f"INSERT INTO recipients (agent_id, through, since) {numbers} "  # noqa: S608 - constants
            "SELECT 'fallen-' || i, 0, 0 FROM numbers",
            *(
                f"INSERT INTO {table} {numbers} "  # noqa: S608 - constants
                f"SELECT {row} FROM (SELECT * FROM {table} LIMIT 1) CROSS JOIN numbers"
                for table, row in rows.items()
            ),
            "INSERT INTO revocations (revocation_id, agent_id, created_at, message, signature, shard, "  # noqa: S608
            f"verifier_id, number, made) {numbers} SELECT 'r' || i, 'fallen-' || i, {int(time.time())}, "
            f"{message}, '', 0, 'default', i, i FROM numbers",
            f"UPDATE change_counters SET changes = {count} WHERE topic = 'revocations'",  # noqa: S608
        ):
            connection.execute(sa.text(statement))
    engine.dispose()


async def run(sound: int, fallen: int, interval_s: float, directory: Path) -> list[Span]:
    """Watches before the fall, and twice after it."""
    port = free_port()
    with stored_in("sqlite") as database:
        options = {
            "KEYLIME_DIR": str(directory),
            "KEYLIME_VERIFIER_PORT": str(port),
            "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(interval_s),
            "KEYLIME_VERIFIER_DATABASE_URL": database.url,
            "KEYLIME_VERIFIER_NUM_WORKERS": "1",
        }
        async with aiohttp.ClientSession() as session:
            with Daemon("keylime_verifier", directory / "verifier.log", options) as daemon:
                daemon.wait_for("Listening on")
                authority = directory / "cv_ca"
                operator = Operator(session, port, authority)
                machines = running_fleet(
                    sound, ima_lines=_IMA_LINES, growth=0, processes=1, client_ca=authority / "cacert.crt"
                )
                with machines as fleet:
                    await operator.add(fleet.identities[0], policy_of(_IMA_LINES))
                    await until(fleet, lambda report: report.quotes > 0, 10 + 3 * interval_s)
                    await add_all(operator, fleet.identities[1:])
                    await until(
                        fleet, lambda report: report.fewest_rounds >= _SETTLING_ROUNDS, 30 + 5 * interval_s
                    )
                    spans = [await watch("before", daemon, fleet, operator, database, interval_s)]
                    fall(database, fallen)
                    for name in ("just after", "later"):
                        spans.append(await watch(name, daemon, fleet, operator, database, interval_s))
                    return spans


def render(spans: list[Span], sound: int, fallen: int) -> Table:
    table = Table(title=f"{fallen:,} machines fall at once and are silent; {sound} are sound")
    table.add_column("")
    for span in spans:
        table.add_column(span.name, justify="right")
    for name, values in (
        ("CPU of the verifier (cores)", [f"{span.cpu_share:.2f}" for span in spans]),
        ("resident memory (MB)", [f"{span.memory_mb:.0f}" for span in spans]),
        ("database (MB)", [f"{span.database_mb:.1f}" for span in spans]),
        ("attestations/s of the sound", [f"{span.rounds_per_s:.1f}" for span in spans]),
        ("their lag p50 / p99 (ms)", ["{:.0f} / {:.0f}".format(*span.lag_ms) for span in spans]),
        ("GET /agents/{id} p50 / p99 (ms)", ["{:.1f} / {:.1f}".format(*span.api_ms) for span in spans]),
    ):
        table.add_row(name, *values)
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sound", type=int, default=50, help="machines that pass (default: %(default)s)")
    parser.add_argument("--fallen", type=int, default=1000, help="machines that fall (%(default)s)")
    parser.add_argument("--interval", type=float, default=2.0, help="quote_interval in s (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keylime-storm-") as directory:
        spans = asyncio.run(run(options.sound, options.fallen, options.interval, Path(directory)))
    Console(width=100).print(render(spans, options.sound, options.fallen))


if __name__ == "__main__":
    main()
