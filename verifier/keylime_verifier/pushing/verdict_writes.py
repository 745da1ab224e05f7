"""What the transaction does that writes verdicts about agents that attest by themselves.

One counts if nothing else has been written about the agent since it was read: else it is worked out again, on
what is there then. Evidence is true whoever judges it, so that no owner of a shard has to; silence is for the
owner of the shard to tell.
"""

import dataclasses
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace

from keylime.messages.push_attestation import Evaluation, FailureReason
from keylime_verifier.agents.events import Occurrence
from keylime_verifier.agents.progress import is_routine
from keylime_verifier.agents.records import AgentRecord, HeldVersions, StoredRevocation
from keylime_verifier.database.history import write_events
from keylime_verifier.database.schema import attestations, progress, pushing
from keylime_verifier.polling.fencing import (
    Ruling,
    StoredState,
    lock_agents,
    lock_claims,
    lock_versions,
)
from keylime_verifier.polling.rows import has_learned, position_columns, verdict_columns
from keylime_verifier.polling.verdict_writes import update_agent
from keylime_verifier.pushing.attestation_rows import COMPLETE, EVALUATING
from keylime_verifier.pushing.session_store import lengthen_sessions
from keylime_verifier.revocations.outbox import insert_revocation

# Statements of every verdict, which are made once: that costs more than to execute them.
_MOVE = (
    sa.update(progress)
    .where(progress.c.agent_id == sa.bindparam("of_agent"))
    .values(recalls=progress.c.recalls + 1)
)
_PUSH = sa.update(pushing).where(pushing.c.agent_id == sa.bindparam("of_agent"))
JUDGED_SOON = sa.and_(
    attestations.c.evaluation == "pending", attestations.c.evidence_at > sa.bindparam("judged_after")
)
_HEARD = sa.select(attestations.c.agent_id).where(
    attestations.c.agent_id.in_(sa.bindparam("of_agents", expanding=True)), JUDGED_SOON
)
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


class AttestationEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How an attestation ended. `token_until` is how long the agent's token holds then, if that changes."""

    number: int
    evaluation: Evaluation
    reason: FailureReason | None = None
    at: float
    is_kept: bool = False
    token_until: float | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of an agent: from what it was read as to what it is. `held_to` of a rejection alone.

    Without a `conclusion` it is about silence, and counts unless evidence has come after `heard_after`, a
    moment of the database's time, that waits for its verdict.
    """

    before: AgentRecord
    after: AgentRecord
    conclusion: AttestationEnd | None
    held_to: HeldVersions | None = None
    revocation: StoredRevocation | None = None
    targets: Sequence[tuple[str, str]] = ()
    events: Sequence[Occurrence] = ()
    heard_after: float = 0.0


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


def is_plain(change: Change) -> bool:
    """Whether it is a pass that changes counters, times and the position only: losing it loses no verdict."""
    conclusion = change.conclusion
    return (
        conclusion is not None
        and conclusion.evaluation == "pass"
        and change.revocation is None
        and not change.events
        and not _is_verdict(change)
    )


def write_changes(connection: sa.Connection, changes: Sequence[Change]) -> list[Ruling]:
    """Writes changes, those that count: table by table, each in the order of the agents.

    No two transactions wait for each other by that. What every writer locks, the outbox and the history, is
    locked after all agents.
    """
    order = sorted(range(len(changes)), key=lambda number: changes[number].before.agent_id)
    rulings = dict(zip(order, _rule(connection, [changes[number] for number in order]), strict=True))
    counting = [changes[number] for number in order if rulings[number] is Ruling.COUNTS]
    for change in counting:
        if _is_verdict(change):
            update_agent(connection, change.after.agent_id, verdict_columns(change.after.progress))
    _execute(
        connection,
        _MOVE,
        [{"of_agent": one.after.agent_id, **position_columns(one.after.progress)} for one in counting],
    )
    pushed = [(one.after.agent_id, one.after.push) for one in counting if one.after.push != one.before.push]
    _execute(
        connection,
        _PUSH,
        [
            {"of_agent": agent_id, "judged": push.judged, "deadline": push.deadline}
            for agent_id, push in pushed
            if push is not None
        ],
    )
    ended = [(one.before, one.conclusion) for one in counting if one.conclusion is not None]
    _conclude(connection, ended)
    until = {record.agent_id: end.token_until for record, end in ended}
    lengthen_sessions(connection, {one: moment for one, moment in until.items() if moment is not None})
    for change in counting:
        if change.revocation is not None:
            insert_revocation(
                connection, change.revocation, change.before.enrolment.verifier_id, change.targets
            )
    write_events(connection, [event for one in counting for event in _told(one)])
    return [rulings[number] for number in range(len(changes))]


def _rule(connection: sa.Connection, changes: Sequence[Change]) -> list[Ruling]:
    """Whether each of `changes` counts; their agents stay as they are until the transaction ends.

    Who owns a shard is found out for silence alone.
    """
    silent = [one.before for one in changes if one.conclusion is None]
    owned = dict(zip((one.agent_id for one in silent), lock_claims(connection, silent), strict=True))
    stored = lock_agents(connection, [one.before for one in changes])
    heard = _heard(connection, [one for one in changes if one.conclusion is None])
    rulings: list[Ruling] = []
    moved: set[str] = set()
    for change in changes:
        before = change.before
        found = stored.get(before.agent_id)
        if found is not None:
            is_held = change.held_to is not None
            versions = lock_versions(connection, before.enrolment) if is_held else found.versions
            claim = owned[before.agent_id] if change.conclusion is None else before.claim
            found = replace(found, claim=claim, versions=versions)
        ruling = rule_on_change(change, found)
        has_come = change.conclusion is None and before.agent_id in heard
        if ruling is Ruling.COUNTS and (has_come or before.agent_id in moved):  # by another of these
            ruling = Ruling.RECALLED
        if ruling is Ruling.COUNTS:
            moved.add(before.agent_id)
        rulings.append(ruling)
    return rulings


def _heard(connection: sa.Connection, silent: Sequence[Change]) -> set[str]:
    """Which agents have brought something since it was found that they are silent."""
    if not silent:
        return set()
    after = min(one.heard_after for one in silent)
    ids = [one.before.agent_id for one in silent]
    return set(connection.scalars(_HEARD, {"of_agents": ids, "judged_after": after}))


def _told(change: Change) -> Sequence[Occurrence]:
    if change.revocation is None:
        return change.events
    revocation_id = change.revocation.revocation_id
    return [
        dataclasses.replace(one, details={**one.details, "revocation": revocation_id})
        for one in change.events
    ]


def _is_verdict(change: Change) -> bool:
    """Whether more changes than what `progress` holds."""
    before, after = change.before, change.after
    return not is_routine(before.progress, after.progress) or _has_learned(before, after)


def _has_learned(before: AgentRecord, after: AgentRecord) -> bool:
    return has_learned(before.progress.checkpoint, after.progress.checkpoint)


def _conclude(connection: sa.Connection, ended: Sequence[tuple[AgentRecord, AttestationEnd]]) -> None:
    """Attestations are over; of those before one that passed the ones stay that are kept."""
    _execute(connection, _CONCLUDE, [_values(record, end) for record, end in ended])
    passed = [
        {"of_agent": record.agent_id, "of_number": end.number}
        for record, end in ended
        if end.evaluation == "pass"
    ]
    _execute(connection, _FORGET, passed)


def _execute(connection: sa.Connection, statement: sa.Executable, rows: Sequence[dict[str, object]]) -> None:
    """Executes a statement for each of `rows`, which may be none."""
    if rows:
        connection.execute(statement, rows)


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
