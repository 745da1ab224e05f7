"""What the transaction does that writes new agents: many at once, where many are added."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.exc import IntegrityError

from keylime.database.many import insert_many
from keylime.errors import KeylimeError
from keylime_verifier.agents.events import Occurrence
from keylime_verifier.agents.policy_categories import PolicyKey
from keylime_verifier.agents.records import AgentRecord, Secrets
from keylime_verifier.database.changes import Topic, publish
from keylime_verifier.database.history import write_events
from keylime_verifier.database.schema import agents, progress, pushing
from keylime_verifier.policies.store import put_policy
from keylime_verifier.polling.fencing import read_claims
from keylime_verifier.polling.rows import enrolment_columns, position_columns, verdict_columns
from keylime_verifier.revocations.backlog import add_recipients


class AgentExists(KeylimeError):
    """An agent with this id is there already, or a policy with a name that one is to have."""


@dataclass(frozen=True, slots=True)
class Addition:
    """A new agent. `policies` maps (kind, name) to the texts of those that come with it."""

    record: AgentRecord
    secrets: Secrets
    policies: Mapping[PolicyKey, str]
    event: Occurrence

    @property
    def size(self) -> int:
        """How many characters of policies come with it."""
        return sum(map(len, self.policies.values()))


def write_additions(connection: sa.Connection, additions: Sequence[Addition]) -> list[AgentRecord]:
    """The records of new agents as they are stored now, with who owns their shards. Raises AgentExists."""
    publish(connection, Topic.AGENTS)
    try:
        _insert(connection, additions)
    except IntegrityError as error:
        raise AgentExists(", ".join(one.record.agent_id for one in additions)) from error
    write_events(connection, [one.event for one in additions])
    records = [one.record for one in additions]
    claims = read_claims(connection, records)
    return [replace(record, claim=claim) for record, claim in zip(records, claims, strict=True)]


def _insert(connection: sa.Connection, additions: Sequence[Addition]) -> None:
    for one in additions:
        for (kind, name), text in one.policies.items():
            put_policy(connection, kind, name, text)
    insert_many(connection, sa.insert(agents), [_agent_row(one) for one in additions])
    insert_many(connection, sa.insert(progress), [_progress_row(one.record) for one in additions])
    by_themselves = [one.record.agent_id for one in additions if one.record.enrolment.is_pushing]
    insert_many(
        connection, sa.insert(pushing), [{"agent_id": one, "next_number": 0} for one in by_themselves]
    )
    polled = [one.record.agent_id for one in additions if not one.record.enrolment.is_pushing]
    if polled:
        add_recipients(connection, polled)


def _agent_row(addition: Addition) -> dict[str, object]:
    record, secrets = addition.record, addition.secrets
    return {
        **enrolment_columns(record.enrolment),
        **verdict_columns(record.progress),
        "v": secrets.v,
        "revocation_key": secrets.revocation_key,
    }


def _progress_row(record: AgentRecord) -> dict[str, object]:
    return {
        "agent_id": record.agent_id,
        "incarnation": record.generation,
        "recalls": record.recalls,
        **position_columns(record.progress),
    }
