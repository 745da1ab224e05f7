"""Which verdicts count when they are written, decided on what the transaction that writes them finds.

A pass counts only for the verifier that owns the agent's shard: whoever took the agent over may know better.
A rejection stands on what the agent answered to a fresh nonce; that is true whoever asked, as long as the
agent is held to the same enrolment and the same policies.

The shard's row is read with a lock that lasts until the commit: nobody can take the shard over between the
check and the write. (On SQLite the transaction is the only one that writes.)
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace

from keylime.database.clock import database_time
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME
from keylime_verifier.agents.records import AgentRecord, Enrolment, HeldVersions
from keylime_verifier.agents.shards import ShardClaim, VerifierId
from keylime_verifier.database.schema import agents, policies, progress, shards

_AT_ONCE = 500
_LOCKED = (
    sa.select(
        agents.c.agent_id,
        progress.c.incarnation,
        progress.c.recalls,
        agents.c.operational_state,
        agents.c.severity_level,
        agents.c.is_polled,
    )
    .join(progress, progress.c.agent_id == agents.c.agent_id)
    .where(agents.c.agent_id.in_(sa.bindparam("of_agents", expanding=True)))
    .order_by(agents.c.agent_id)
    .with_for_update()
)
_OWNERS = sa.select(shards.c.shard, shards.c.owner, shards.c.epoch).order_by(shards.c.shard)


class Ruling(Enum):
    """Whether a verdict counts, and why not."""

    COUNTS = "it counts"
    KNOWN = "the agent has been rejected for something as grave already"
    RECALLED = "another verifier has judged the agent since, and it is judged again"
    DELETED = "the agent has been deleted"
    ENROLLED_ANEW = "the agent has been stopped, reactivated or enrolled anew since"
    TAKEN_OVER = "another verifier has taken the agent over"
    POLICIES_REPLACED = "the policies that it was held to have been replaced since"


@dataclass(frozen=True, slots=True)
class VerdictRefusal:
    """A verdict that does not count."""

    record: AgentRecord
    ruling: Ruling


class StoredState(msgspec.Struct, frozen=True):
    """What a writer finds of an agent, and who owns its shard. `versions` matter for rejections only."""

    generation: str
    recalls: int
    state: OperationalState
    severity_level: int | None
    is_polled: bool
    claim: ShardClaim
    versions: HeldVersions = msgspec.field(default_factory=HeldVersions)


def rule_on_pass(record: AgentRecord, found: StoredState | None) -> Ruling:
    """What becomes of `record`, which says that an agent passed or did not answer."""
    if found is None:
        return Ruling.DELETED
    if found.generation != record.generation:
        return Ruling.ENROLLED_ANEW
    if found.claim != record.claim:
        return Ruling.TAKEN_OVER
    return Ruling.COUNTS if found.recalls == record.recalls else Ruling.RECALLED


def rule_on_rejection(record: AgentRecord, held_to: HeldVersions, found: StoredState | None) -> Ruling:
    """What becomes of `record`, which says that an agent's evidence was rejected under some policies."""
    if found is None:
        return Ruling.DELETED
    if found.generation != record.generation:
        return Ruling.ENROLLED_ANEW
    if found.versions != held_to:
        return Ruling.POLICIES_REPLACED
    if not was_told(record, found):
        return Ruling.COUNTS
    if is_current(record, found):
        # Its polling has ended, so this is the verdict that ended it: its commit was not confirmed.
        return Ruling.COUNTS if found.is_polled else Ruling.KNOWN
    ends_polling = found.is_polled and not record.progress.is_polled
    return Ruling.COUNTS if ends_polling else Ruling.KNOWN


def is_current(record: AgentRecord, found: StoredState) -> bool:
    """Whether nobody else can have judged the agent since `record` was read."""
    return found.claim == record.claim and found.recalls == record.recalls


def was_told(record: AgentRecord, found: StoredState) -> bool:
    """Whether the agent stands rejected for something as grave as `record` says."""
    if found.state is not OperationalState.INVALID_QUOTE or found.severity_level is None:
        return False
    return found.severity_level >= (record.progress.severity_level or 0)


def lock_claims(connection: sa.Connection, records: Collection[AgentRecord]) -> list[ShardClaim]:
    """Who owns the shard of each record; nobody else can until the transaction ends."""
    return _claims(connection, records, _OWNERS.with_for_update(read=True))


def read_claims(connection: sa.Connection, records: Collection[AgentRecord]) -> list[ShardClaim]:
    """Who owns the shard of each record now."""
    return _claims(connection, records, _OWNERS)


def _claims(
    connection: sa.Connection, records: Collection[AgentRecord], owners: sa.Select[Any]
) -> list[ShardClaim]:
    claims: dict[tuple[VerifierId, int], ShardClaim] = {}
    for verifier_id in sorted({record.enrolment.verifier_id for record in records}):
        concerned = {record.shard for record in records if record.enrolment.verifier_id == verifier_id}
        rows = connection.execute(
            owners.where(shards.c.verifier_id == verifier_id, shards.c.shard.in_(concerned))
        )
        claims |= {(verifier_id, row.shard): ShardClaim(row.owner, row.epoch) for row in rows}
    return [claims.get((record.enrolment.verifier_id, record.shard), ShardClaim()) for record in records]


def lock_agent(
    connection: sa.Connection, record: AgentRecord, claim: ShardClaim, *, with_policies: bool
) -> StoredState | None:
    """What is there of an agent; it stays so until the transaction ends."""
    found = lock_agents(connection, [record]).get(record.agent_id)
    if found is None:
        return None
    versions = lock_versions(connection, record.enrolment) if with_policies else found.versions
    return replace(found, claim=claim, versions=versions)


def lock_agents(connection: sa.Connection, records: Collection[AgentRecord]) -> dict[str, StoredState]:
    """What is there of agents, by their ids, without claims and versions; locked in their order."""
    found: dict[str, StoredState] = {}
    ids = sorted({record.agent_id for record in records})
    for first in range(0, len(ids), _AT_ONCE):
        rows = connection.execute(_LOCKED, {"of_agents": ids[first : first + _AT_ONCE]})
        for agent_id, incarnation, recalls, state, severity_level, is_polled in rows:
            found[agent_id] = StoredState(
                incarnation, recalls, OperationalState(state), severity_level, is_polled, ShardClaim()
            )
    return found


def lock_versions(connection: sa.Connection, enrolment: Enrolment) -> HeldVersions:
    """What is stored of an agent's policies; it stays so until the transaction ends."""
    names = {part.name for part in enrolment.parts}
    runtime = sa.and_(policies.c.kind == RUNTIME, policies.c.name.in_(names))
    boot = sa.and_(policies.c.kind == MEASURED_BOOT, policies.c.name == enrolment.measured_boot_policy)
    rows = connection.execute(
        sa.select(policies.c.kind, policies.c.name, policies.c.content_hash)
        .where(sa.or_(runtime, boot))
        .order_by(policies.c.kind, policies.c.name)
        .with_for_update(read=True)
    )
    found = {(row.kind, row.name): row.content_hash for row in rows}
    by_name = {name: text_hash for (kind, name), text_hash in found.items() if kind == RUNTIME}
    now = connection.execute(sa.select(database_time())).scalar_one() if enrolment.runtime_parts else 0.0
    boot_hash = found.get((MEASURED_BOOT, enrolment.measured_boot_policy or ""))
    return HeldVersions.found(enrolment, by_name, boot_hash, now)
