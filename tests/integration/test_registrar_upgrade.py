"""The registrar's tables brought up to date in the middle of registrations, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from keylime.database.engine import parse_database_url
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database, open_database
from keylime.http.sources import source_prefixes
from keylime.identifiers import AgentId
from keylime_registrar.activation import Proven
from keylime_registrar.identity import Registration, hash_tag, tag_hash
from keylime_registrar.schema import SCHEMA
from keylime_registrar.store import Origin, PendingLimits, Store
from tests.fakes.postgresql import running_postgresql

ADDRESSES = ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.9", "fe80::1%eth0", "not an address")
NOW = 1_000_000


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of an empty database for this module."""
    with running_postgresql() as server:
        yield server.new_database()


def as_of_r0001(connection: sa.Connection) -> None:
    """The tables of that release, with one registration from each address under way, and one that expired."""
    config = Config()
    config.set_main_option("script_location", str(SCHEMA.migrations))
    config.set_main_option("path_separator", "os")
    config.attributes.update(connection=connection, version_table=SCHEMA.version_table)
    command.upgrade(config, "r0001")
    table = sa.Table("pending_registrations", sa.MetaData(), autoload_with=connection)
    for number, address in enumerate((*ADDRESSES, "192.0.2.200")):
        row = {
            "agent_id": f"agent-{number}",
            "ek_tpm": b"ek %d" % number,
            "aik_tpm": b"ak",
            "ip": "10.0.0.1",
            "port": 9002,
            "mtls_cert": "disabled",
            "tag_hash": hash_tag(f"tag {number}"),
            "source": address,
            "wrong_tags": 0,
            "expires_at": NOW + 60 if number < len(ADDRESSES) else NOW - 1,
        }
        connection.execute(sa.insert(table), row)


async def upgraded_in_the_middle(database: Database) -> None:
    await database.write("make the tables of r0001", as_of_r0001)
    migration = await prepare_schema(database, SCHEMA, migrate=True)
    assert (migration.before, migration.after) == ("r0001", "r0003")
    store = Store(database, PendingLimits())
    for number, address in enumerate(ADDRESSES):
        agent_id, origin = AgentId(f"agent-{number}"), Origin.of(source_prefixes(address))
        same = Registration(
            agent_id, b"ek %d" % number, b"ak", ip="10.0.0.1", port=9002, mtls_cert="disabled"
        )
        # What it repeats now is another registration, whose secret can be derived again.
        repeated = tag_hash(await store.add_pending(same, origin, NOW), agent_id)
        assert repeated != hash_tag(f"tag {number}")
        activation = await store.activate(agent_id, hash_tag(f"tag {number}"), origin, NOW)
        assert (isinstance(activation.outcome, Proven), activation.regcount) == (True, 1)
        active = await store.active(agent_id)
        assert active is not None
        assert active.registration == same
    assert not await store.is_pending(AgentId(f"agent-{len(ADDRESSES)}"), NOW)
    assert await store.agent_ids() == [f"agent-{number}" for number in range(len(ADDRESSES))]


def run(url: str, directory: Path) -> None:
    async def scenario() -> None:
        database = open_database(parse_database_url(url, work_dir=directory, sqlite_name="r.sqlite"))
        try:
            await upgraded_in_the_middle(database)
        finally:
            await database.close()

    asyncio.run(scenario())


def test_s12_registrations_under_way_are_proven_after_the_upgrade(tmp_path: Path) -> None:
    run("sqlite", tmp_path)


def test_s12_registrations_under_way_are_proven_after_the_upgrade_on_postgresql(postgres: str) -> None:
    run(postgres, Path("/nowhere"))
