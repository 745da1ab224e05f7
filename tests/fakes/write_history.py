"""PostgreSQL remembers every write of polling, with who wrote it and who owned the shard at that moment."""

import psycopg

from keylime.messages.verifier import OperationalState
from tests.fakes.verifier_process import Verifiers

_TRIGGER = """
CREATE TABLE history (id bigserial, agent_id text, incarnation text, writer text, owner text, epoch int,
                      state int, count int);
CREATE FUNCTION remember() RETURNS trigger AS $$
BEGIN
  IF OLD.incarnation = NEW.incarnation THEN
    INSERT INTO history (agent_id, incarnation, writer, owner, epoch, state, count)
    SELECT NEW.agent_id, NEW.incarnation, current_setting('application_name'), members.name, shards.epoch,
           NEW.operational_state, NEW.attestation_count
    FROM shards LEFT JOIN members ON members.member_id = shards.owner
    WHERE shards.verifier_id = NEW.verifier_id AND shards.shard = NEW.shard;
  END IF;
  RETURN NULL;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER remember AFTER UPDATE ON agents FOR EACH ROW EXECUTE FUNCTION remember();
"""


def remember_writes(url: str) -> None:
    """Begins the history of a verifier's database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_TRIGGER)


def wrong_writes(site: Verifiers) -> tuple[list[str], int]:
    """What should not have been written, in words, and how many writes there were in all."""
    faults: list[str] = []
    rows = site.query("SELECT agent_id, writer, owner, state, count, epoch FROM history ORDER BY id")
    last: dict[object, tuple[int, int]] = {}
    for agent_id, writer, owner, state, count, epoch in rows:
        if _pid_of(owner) != _pid_of(writer):
            faults.append(f"{agent_id}: written by {writer} in epoch {epoch} of {owner}")
        before = last.get(agent_id, (0, int(OperationalState.GET_QUOTE)))
        if int(str(count)) < before[0]:
            faults.append(f"{agent_id}: its count went back from {before[0]} to {count}")
        if before[1] == OperationalState.INVALID_QUOTE:
            faults.append(f"{agent_id}: written again after its last verdict")
        last[agent_id] = int(str(count)), int(str(state))
    return faults, len(rows)


def _pid_of(name: object) -> str:
    """Both the owner's name and the writer's end in the process id."""
    return str(name).rpartition(":")[2]
