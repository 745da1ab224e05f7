"""What the transaction does that writes verdicts about agents that attest by themselves.

One counts if nothing else has been written about the agent since it was read: else it is worked out again, on
what is there then. Evidence is true whoever judges it, so that no owner of a shard has to; silence is for the
owner of the shard to tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from keylime.messages.push_attestation import Evaluation, FailureReason
from keylime_verifier.agents.events import Occurrence
from keylime_verifier.agents.progress import is_routine
from keylime_verifier.agents.records import AgentRecord, HeldVersions, StoredRevocation
from keylime_verifier.agents.shards import ShardClaim
from keylime_verifier.database.history import write_events
from keylime_verifier.database.schema import attestations, progress, pushing
from keylime_verifier.polling.fencing import Ruling, StoredState, lock_agent, lock_claims
from keylime_verifier.polling.rows import has_learned, position_columns, verdict_columns
from keylime_verifier.polling.verdict_writes import update_agent
from keylime_verifier.pushing.attestation_rows import COMPLETE, EVALUATING
from keylime_verifier.pushing.session_store import lengthen_session
from keylime_verifier.revocations.outbox import insert_revocation

# Statements of every verdict, which are made once: that costs more than to execute them.
_MOVE = (
    sa.update(progress)
    .where(progress.c.agent_id == sa.bindparam("of_agent"))
    .values(recalls=progress.c.recalls + 1)
)
_PUSH = sa.update(pushing).where(pushing.c.agent_id == sa.bindparam("of_agent"))
_OF_AGENT = attestations.c.agent_id == sa.bindparam("of_agent")
_CONCLUDE = sa.update(attestations).where(
    _OF_AGENT,
    attestations.c.number == sa.bindparam("of_number"),
    attestations.c.generation == sa.bindparam("of_generation"),
)
_END = _CONCLUDE.where(attestations.c.stage == EVALUATING)
_FORGET = sa.delete(attestations).where(
    _OF_AGENT,
    attestations.c.number < sa.bindparam("of_number"),
    attestations.c.stage == COMPLETE,  # others may still be found to fail
    sa.not_(attestations.c.is_kept),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationEnd:
    """How an attestation ended. `token_until` is how long the agent's token holds then, if that changes."""

    number: int
    evaluation: Evaluation
    reason: FailureReason | None = None
    at: float
    is_kept: bool = False
    token_until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of an agent: from what it was read as to what it is. `held_to` of a rejection alone.

    Without a `conclusion` it is about silence.
    """

    before: AgentRecord
    after: AgentRecord
    conclusion: AttestationEnd | None
    held_to: HeldVersions | None = None
    revocation: StoredRevocation | None = None
    targets: Sequence[tuple[str, str]] = ()
    events: Sequence[Occurrence] = ()


def rule_on_change(change: Change, found: StoredState | None) -> Ruling:
    """Whether a change counts, by what the transaction that writes it finds."""
    before = change.before
    if found is None:
        return Ruling.DELETED
    if found.generation != before.generation:
        return Ruling.ENROLLED_ANEW
    if change.held_to is not None and found.versions != change.held_to:
        return Ruling.POLICIES_REPLACED
    if change.conclusion is None and found.claim != before.claim:
        return Ruling.TAKEN_OVER
    is_same = (found.recalls, found.state) == (before.recalls, before.progress.operational_state)
    return Ruling.COUNTS if is_same else Ruling.RECALLED


def write_changes(connection: sa.Connection, changes: Sequence[Change]) -> list[Ruling]:
    """Writes changes, those that count, in the order of their agents.

    What every writer locks, the outbox and the history, is locked after all agents.
    """
    silent = [one.before for one in changes if one.conclusion is None]
    owned = dict(zip((one.agent_id for one in silent), lock_claims(connection, silent), strict=True))
    rulings = [_write_change(connection, one, owned.get(one.before.agent_id)) for one in changes]
    counting = [one for one, ruling in zip(changes, rulings, strict=True) if ruling is Ruling.COUNTS]
    for one in counting:
        if one.revocation is not None:
            insert_revocation(connection, one.revocation, one.before.enrolment.verifier_id, one.targets)
    write_events(connection, [event for one in counting for event in _told(one)])
    return rulings


def _told(change: Change) -> Sequence[Occurrence]:
    if change.revocation is None:
        return change.events
    revocation_id = change.revocation.revocation_id
    return [replace(one, details={**one.details, "revocation": revocation_id}) for one in change.events]


def _write_change(connection: sa.Connection, change: Change, owned: ShardClaim | None) -> Ruling:
    """What becomes of an agent and its attestation, if it counts.

    Who `owned` its shard is found out for silence alone.
    """
    before, after, conclusion = change.before, change.after, change.conclusion
    found = lock_agent(connection, before, owned or before.claim, with_policies=change.held_to is not None)
    ruling = rule_on_change(change, found)
    if ruling is not Ruling.COUNTS:
        return ruling
    if not is_routine(before.progress, after.progress) or _has_learned(before, after):
        update_agent(connection, after.agent_id, verdict_columns(after.progress))
    connection.execute(_MOVE, {"of_agent": after.agent_id, **position_columns(after.progress)})
    if after.push is not None and after.push != before.push:
        values = {"of_agent": after.agent_id, "judged": after.push.judged, "deadline": after.push.deadline}
        connection.execute(_PUSH, values)
    if conclusion is not None:
        _conclude(connection, before, conclusion)
        if conclusion.token_until is not None:
            lengthen_session(connection, after.agent_id, conclusion.token_until)
    return ruling


def _has_learned(before: AgentRecord, after: AgentRecord) -> bool:
    return has_learned(before.progress.checkpoint, after.progress.checkpoint)


def _conclude(connection: sa.Connection, record: AgentRecord, conclusion: AttestationEnd) -> None:
    """The attestation is over; of those before it the ones stay that are kept."""
    connection.execute(_CONCLUDE, _values(record, conclusion))
    if conclusion.evaluation == "pass":
        connection.execute(_FORGET, {"of_agent": record.agent_id, "of_number": conclusion.number})


def end_attestation(connection: sa.Connection, record: AgentRecord, conclusion: AttestationEnd) -> None:
    """The attestation is over, whatever became of the agent; one that was over before stays as it is."""
    connection.execute(_END, _values(record, conclusion))


def _values(record: AgentRecord, conclusion: AttestationEnd) -> dict[str, object]:
    return {
        "of_agent": record.agent_id,
        "of_number": conclusion.number,
        "of_generation": record.generation,
        "stage": COMPLETE,
        "evaluation": conclusion.evaluation,
        "failure_reason": conclusion.reason,
        "completed_at": conclusion.at,
        "is_kept": conclusion.is_kept,
    }
