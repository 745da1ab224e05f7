"""The database remembers every write of polling; a server with who wrote it, and who owned the shard."""

import contextlib
import sqlite3
from contextlib import closing

import psycopg
import sqlalchemy as sa

from keylime.messages.verifier import OperationalState
from tests.fakes.databases import engine_for
from tests.fakes.verifier_process import Verifiers
from tests.truth.history import Written

# Whoever recalls an agent says nothing of it; who rejects it for another owner changes its state before.
_POSTGRESQL = """
CREATE TABLE history (id bigserial, agent_id text, incarnation text, state int, count int, writer text,
                      owner text);
CREATE FUNCTION remember() RETURNS trigger AS $$
BEGIN
  IF OLD.incarnation = NEW.incarnation THEN
    INSERT INTO history (agent_id, incarnation, state, count, writer, owner)
    SELECT NEW.agent_id, NEW.incarnation, agents.operational_state, NEW.attestation_count,
           current_setting('application_name'), members.name
    FROM agents
    JOIN shards ON shards.verifier_id = agents.verifier_id AND shards.shard = agents.shard
    LEFT JOIN members ON members.member_id = shards.owner
    WHERE agents.agent_id = NEW.agent_id
      AND (OLD.recalls = NEW.recalls OR agents.operational_state = %(rejected)s);
  END IF;
  RETURN NULL;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER remember AFTER UPDATE ON progress FOR EACH ROW EXECUTE FUNCTION remember();
"""
_SQLITE = """
CREATE TABLE history (id INTEGER PRIMARY KEY, agent_id, incarnation, state, count, writer, owner);
CREATE TRIGGER remember AFTER UPDATE ON progress WHEN OLD.incarnation = NEW.incarnation
BEGIN
  INSERT INTO history (agent_id, incarnation, state, count)
  SELECT NEW.agent_id, NEW.incarnation, agents.operational_state, NEW.attestation_count
  FROM agents
  WHERE agents.agent_id = NEW.agent_id
    AND (OLD.recalls = NEW.recalls OR agents.operational_state = %(rejected)s);
END;
"""
_MARIADB = (
    "CREATE TABLE history (id bigint AUTO_INCREMENT PRIMARY KEY, agent_id text, incarnation text, state int, "
    "count int, writer text, owner text) CHARACTER SET utf8mb4",
    """
CREATE TRIGGER remember AFTER UPDATE ON progress FOR EACH ROW
  INSERT INTO history (agent_id, incarnation, state, count, writer, owner)
  SELECT NEW.agent_id, NEW.incarnation, agents.operational_state, NEW.attestation_count,
         (SELECT attr_value FROM performance_schema.session_connect_attrs
          WHERE processlist_id = connection_id() AND attr_name = 'program_name'), members.name
  FROM agents
  JOIN shards ON shards.verifier_id = agents.verifier_id AND shards.shard = agents.shard
  LEFT JOIN members ON members.member_id = shards.owner
  WHERE agents.agent_id = NEW.agent_id AND OLD.incarnation = NEW.incarnation
    AND (OLD.recalls = NEW.recalls OR agents.operational_state = %(rejected)s)
""",
)


def remember_writes(url: str) -> None:
    """Begins the history of a verifier's database."""
    values = {"rejected": int(OperationalState.INVALID_QUOTE)}
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60)) as file:
            file.executescript(_SQLITE % values)
    elif url.startswith("mysql"):
        with contextlib.closing(engine_for(url).connect()) as server:
            for statement in _MARIADB:
                server.execute(sa.text(statement % values))
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_POSTGRESQL % values)


def writes(site: Verifiers) -> tuple[Written, ...]:
    """What has been written since, in order."""
    rows = site.query("SELECT agent_id, incarnation, state, count, writer, owner FROM history ORDER BY id")
    return tuple(Written(*row) for row in rows)  # type: ignore[arg-type]  # as the columns are
