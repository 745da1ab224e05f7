"""What the passes of a large fleet cost the database: `python benchmarks/passes.py [--agents N]`.

A PostgreSQL server of its own holds N machines with rows of a genuine size. All of them pass, round after
round, written in batches by the store of the verifier. The figures are the server's own: write-ahead log,
updates that stayed on their page (HOT), tables on disk before and after, and how long a vacuum takes.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psycopg
import sqlalchemy as sa
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from keylime.appraisal.checkpoint import BootSession, Checkpoint
from keylime.database.engine import parse_database_url
from keylime.database.many import insert_many
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database, open_database
from keylime.identifiers import AgentId
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.runtime_policy import PolicyHash
from keylime_verifier.agents.policy_categories import RUNTIME
from keylime_verifier.agents.records import AgentRecord, Enrolment, Progress, Secrets
from keylime_verifier.agents.shards import SHARDS, MemberId, VerifierId, shard_of
from keylime_verifier.database.schema import SCHEMA, shards
from keylime_verifier.polling.store import AgentStore
from tests.fakes.postgresql import running_postgresql

_VERIFIER = VerifierId("default")
_OWNER = MemberId("0" * 32)
_BATCH = 500  # passes in one transaction, as a busy verifier writes them
_CERTIFICATE, _KEY, _PUBLIC_KEY = "c" * 1400, "k" * 1700, "p" * 450  # characters of PEM, as agents have them


@dataclass(frozen=True, slots=True)
class Counters:
    """What the server has counted so far."""

    wal_bytes: int
    updates: int
    hot_updates: int
    table_bytes: int


@dataclass(frozen=True, slots=True)
class Result:
    """What some rounds of the whole fleet cost."""

    passes: int
    took_s: float
    before: Counters
    after: Counters
    vacuum_s: float

    @property
    def wal_per_pass(self) -> float:
        """In bytes."""
        return (self.after.wal_bytes - self.before.wal_bytes) / self.passes

    @property
    def hot_share(self) -> float:
        """The part of all updates that changed no index."""
        updates = self.after.updates - self.before.updates
        return (self.after.hot_updates - self.before.hot_updates) / updates if updates else 0.0


def machine(number: int) -> AgentRecord:
    """One machine as it is right after it was added."""
    agent_id = AgentId(f"{number:08x}-0000-4000-8000-000000000000")
    enrolment = Enrolment(
        agent_id=agent_id,
        ip="192.0.2.1",
        port=9002,
        mtls_cert=_CERTIFICATE,
        ak_tpm="a" * 400,
        verifier_id=_VERIFIER,
        verifier_ip=None,
        verifier_port=None,
        has_v=True,
        meta_data="{}",
        tpm_policy='{"mask": "0x408000"}',
        runtime_policy="fleet",
        measured_boot_policy=None,
        ima_sign_verification_keys="",
        accept_tpm_hash_algs=("sha256",),
        accept_tpm_encryption_algs=("ecc", "rsa"),
        accept_tpm_signing_algs=("ecdsa", "rsassa"),
    )
    checkpoint = Checkpoint(
        boot=BootSession(reset_count=7, restart_count=0, clock=1, boottime=1_790_000_000),
        ima=ImaCheckpoint(next_entry=2000, pcr=b"\x5a" * 32, bank="sha256", matched=0, length=0),
        ima_policy=PolicyHash("f" * 64),
        public_key=_PUBLIC_KEY,
        firmware_version=1,
    )
    progress = Progress(
        supported_version="2.5", hash_alg="sha256", enc_alg="ecc", sign_alg="ecdsa", checkpoint=checkpoint
    )
    return AgentRecord("", enrolment, progress)


def passed(record: AgentRecord, round_number: int) -> AgentRecord:
    """The same machine after one more round in which it has measured a few files."""
    progress = record.progress
    boot, ima = progress.checkpoint.boot, progress.checkpoint.ima
    assert boot is not None  # noqa: S101 - as `machine` made it
    moved = msgspec.structs.replace(
        progress.checkpoint,
        boot=msgspec.structs.replace(boot, clock=boot.clock + 10_000),
        ima=msgspec.structs.replace(ima, next_entry=ima.next_entry + 2, pcr=bytes([round_number % 256]) * 32),
    )
    now = progress.last_received_quote + 10
    return replace(
        record,
        progress=replace(
            progress,
            attestation_count=progress.attestation_count + 1,
            last_received_quote=now,
            last_successful_attestation=now,
            checkpoint=moved,
        ),
    )


async def fill(database: Database, count: int) -> None:
    """Adds the first machine as an operator would, and copies of it in the database."""
    first = machine(0)
    store = AgentStore(database)
    rows = [
        {"verifier_id": _VERIFIER, "shard": shard, "owner": _OWNER, "epoch": 1} for shard in range(SHARDS)
    ]
    await database.write(
        "own the shards", lambda connection: insert_many(connection, sa.insert(shards), rows)
    )
    await store.add(first.enrolment, Secrets("v" * 44, _KEY), "2.5", {(RUNTIME, "fleet"): "{}"})
    record = await store.find(first.agent_id)
    if record is None:
        raise RuntimeError("the first machine was not stored")
    await store.record_passes([replace(record, progress=first.progress)], {first.agent_id})
    others = [machine(number).agent_id for number in range(1, count)]
    ids = sa.text("INSERT INTO fleet (agent_id, shard) VALUES (:agent_id, :shard)")

    def work(connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE TEMPORARY TABLE fleet (agent_id text, shard integer)"))
        connection.execute(ids, [{"agent_id": other, "shard": shard_of(other)} for other in others])
        for table in _tables_of_agents(connection):
            columns = [column.name for column in table.columns]
            values = ", ".join(
                f"fleet.{name}" if name in ("agent_id", "shard") else f"t.{name}" for name in columns
            )
            connection.execute(
                sa.text(
                    f"INSERT INTO {table.name} ({', '.join(columns)}) "  # noqa: S608 - names of our own tables
                    f"SELECT {values} FROM {table.name} t CROSS JOIN fleet WHERE t.agent_id = :first"
                ),
                {"first": first.agent_id},
            )

    await database.write("add the other machines", work)


def _tables_of_agents(connection: sa.Connection) -> list[sa.Table]:
    """The tables with a row for each agent."""
    metadata = sa.MetaData()
    metadata.reflect(connection)
    return [
        table
        for table in metadata.sorted_tables
        if [column.name for column in table.primary_key.columns] == ["agent_id"]
    ]


async def write_rounds(database: Database, rounds: int) -> tuple[int, float]:
    """Has every machine pass `rounds` times; how many passes, and how long the database took for them."""
    store = AgentStore(database)
    ids = [AgentId(agent_id) for agent_id in await store.list_ids()]
    records = [
        record
        for first in range(0, len(ids), _BATCH)
        for record in await store.load_polled(_OWNER, ids[first : first + _BATCH])
    ]
    took_s = 0.0
    for round_number in range(1, rounds + 1):
        records = [passed(record, round_number) for record in records]
        began = time.perf_counter()
        for first in range(0, len(records), _BATCH):
            refused = await store.record_passes(records[first : first + _BATCH])
            if refused:
                raise RuntimeError(f"{len(refused)} passes were refused")
        took_s += time.perf_counter() - began
    return rounds * len(records), took_s


def counters(connection: psycopg.Connection[tuple[int, ...]]) -> Counters:
    """The server's figures now."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    row = connection.execute(
        "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, sum(n_tup_upd)::bigint, "
        "sum(n_tup_hot_upd)::bigint, sum(pg_total_relation_size(relid))::bigint FROM pg_stat_user_tables"
    ).fetchone()
    if row is None:
        raise RuntimeError("the server gave no statistics")
    return Counters(*row)


async def measure(url: str, count: int, rounds: int) -> Result:
    """Fills the database and has the fleet pass; autovacuum runs as it likes meanwhile."""
    database = open_database(parse_database_url(url, work_dir=Path("/"), sqlite_name=""))
    try:
        await prepare_schema(database, SCHEMA, migrate=True)
        await fill(database, count)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
            before = counters(connection)
            passes, took_s = await write_rounds(database, rounds)
            await database.close()  # a session publishes what it counted when it ends
            after = counters(connection)
            began = time.perf_counter()
            connection.execute("VACUUM")
            return Result(passes, took_s, before, after, time.perf_counter() - began)
    finally:
        await database.close()


def render(result: Result, count: int, rounds: int) -> Table:
    table = Table(title=f"PostgreSQL, {count:,} machines pass {rounds} times, {_BATCH} in a transaction")
    table.add_column("")
    table.add_column("", justify="right")
    rows: Sequence[tuple[str, str]] = (
        ("passes written per second", f"{result.passes / result.took_s:,.0f}"),
        ("write-ahead log for each pass, bytes", f"{result.wal_per_pass:,.0f}"),
        ("updates that changed no index (HOT), %", f"{100 * result.hot_share:.1f}"),
        (
            "tables before / after, MB",
            f"{result.before.table_bytes / 2**20:,.0f} / {result.after.table_bytes / 2**20:,.0f}",
        ),
        ("vacuum afterwards, s", f"{result.vacuum_s:.1f}"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="What the passes of a large fleet cost PostgreSQL.")
    parser.add_argument("--agents", type=int, default=5_000, help="how many machines (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="passes of each (default: %(default)s)")
    options = parser.parse_args()
    with running_postgresql() as server:
        result = asyncio.run(measure(server.new_database(), options.agents, options.rounds))
    Console().print(render(result, options.agents, options.rounds))


if __name__ == "__main__":
    main()
