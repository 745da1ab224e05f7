"""Agents in the verifier's database: each method is one transaction; rows come out as typed records."""

import base64
import dataclasses
import logging
import uuid
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy import RowMapping
from sqlalchemy.exc import IntegrityError

from keylime import patience
from keylime.database.clock import database_time
from keylime.database.together import Together
from keylime.database.transactions import Database
from keylime.database.write_turn import Urgency
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime.revocation.message import is_cleared
from keylime_verifier.agents.events import Actor, EventKind, Occurrence, details_of
from keylime_verifier.agents.lifecycle import POLLED_STATES
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME, PolicyKey, TextHash
from keylime_verifier.agents.policy_parts import decode_parts
from keylime_verifier.agents.records import (
    AgentRecord,
    AgentVersion,
    Enrolment,
    HeldVersions,
    PolicyPart,
    Progress,
    RowVersion,
    Secrets,
    StoredRevocation,
)
from keylime_verifier.agents.shards import MemberId, VerifierId
from keylime_verifier.database.changes import Topic, publish
from keylime_verifier.database.history import act_of, write_events
from keylime_verifier.database.schema import (
    agents,
    attestations,
    policies,
    progress,
    pushing,
    revocations,
    shards,
)
from keylime_verifier.policies.store import delete_policy, put_policy, used_by
from keylime_verifier.polling.additions import Addition, AgentExists, write_additions
from keylime_verifier.polling.fencing import (
    Ruling,
    VerdictRefusal,
)
from keylime_verifier.polling.rows import (
    UnreadableRecord,
    enrolment_columns,
    position_columns,
    record_of,
    verdict_columns,
)
from keylime_verifier.polling.verdict_writes import (
    StateChange,
    move_agent,
    update_agent,
    write_passes,
    write_states,
    write_verdict,
)
from keylime_verifier.revocations.backlog import remove_recipient

log = logging.getLogger(__name__)


_LISTED_AT_ONCE = 5_000
_WRITTEN_AT_ONCE = 32
_SHARES_UP_TO = 64 << 10  # characters of policies: with more of them an agent has a transaction of its own

# An agent without its other row is one that cannot be read, not one that is not there.
_CLAIMED = agents.outerjoin(progress, progress.c.agent_id == agents.c.agent_id).outerjoin(
    shards, sa.and_(shards.c.verifier_id == agents.c.verifier_id, shards.c.shard == agents.c.shard)
)
_POSITION = [column for column in progress.c if column.name != "agent_id"]
SELECT_RECORDS = sa.select(
    agents, *_POSITION, shards.c.owner, shards.c.epoch, pushing.c.judged, pushing.c.deadline
).select_from(_CLAIMED.outerjoin(pushing, pushing.c.agent_id == agents.c.agent_id))
"""The rows that `record_of` reads."""

_RUNTIME_POLICY, _BOOT_POLICY = policies.alias("runtime_policy"), policies.alias("boot_policy")
_HASHES = sa.select(policies.c.name, policies.c.content_hash).where(policies.c.kind == RUNTIME)
_VERSIONS = (
    sa.select(
        agents.c.agent_id,
        progress.c.incarnation,
        progress.c.recalls,
        shards.c.epoch,
        _RUNTIME_POLICY.c.content_hash.label("runtime"),
        _BOOT_POLICY.c.content_hash.label("boot"),
        agents.c.runtime_policy,
        agents.c.runtime_parts,
    )
    .select_from(
        _CLAIMED.outerjoin(
            _RUNTIME_POLICY,
            sa.and_(_RUNTIME_POLICY.c.kind == RUNTIME, _RUNTIME_POLICY.c.name == agents.c.runtime_policy),
        ).outerjoin(
            _BOOT_POLICY,
            sa.and_(
                _BOOT_POLICY.c.kind == MEASURED_BOOT,
                _BOOT_POLICY.c.name == agents.c.measured_boot_policy,
            ),
        )
    )
    .where(agents.c.is_polled, sa.not_(agents.c.is_pushing))
)


class AgentStore:
    """The agents of all verifiers that share this database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._additions: Together[Addition, AgentRecord] = Together(
            "add an agent", self._add_some, writes=True, at_once=_WRITTEN_AT_ONCE
        )
        self._states: Together[StateChange, Ruling] = Together(
            "record a verdict",
            self._write_states,
            writes=True,
            at_once=_WRITTEN_AT_ONCE,
            limit_s=patience.OWN_WORK_S,
        )
        self._by_itself: set[AgentId] = set()  # of whom something was not taken together with others

    async def find(self, agent_id: AgentId) -> AgentRecord | None:
        """The record of one agent, or None. Raises UnreadableRecord."""

        def work(connection: sa.Connection) -> RowMapping | None:
            return connection.execute(SELECT_RECORDS.where(agents.c.agent_id == agent_id)).mappings().first()

        row = await self._database.read("read an agent", work)
        return None if row is None else record_of(row)

    async def ak_tpm_of(self, agent_id: AgentId) -> str | None:
        """The AK of an agent, base64 of its TPM2B_PUBLIC, or None."""
        query = sa.select(agents.c.ak_tpm).where(agents.c.agent_id == agent_id)

        def work(connection: sa.Connection) -> str | None:
            return connection.execute(query).scalar()

        return await self._database.read("read an agent's AK", work)

    async def list_ids(self, verifier_id: VerifierId | None = None) -> list[AgentId]:
        """All agent ids, or those of one verifier, sorted."""
        query = sa.select(agents.c.agent_id)
        if verifier_id:
            query = query.where(agents.c.verifier_id == verifier_id)
        return [AgentId(row.agent_id) async for row in self._pages(query)]

    async def _pages(self, query: sa.Select[Any]) -> AsyncIterator[sa.Row[Any]]:
        """The rows of a query about agents by their ids, read in parts with a transaction each."""
        after = ""
        while True:
            part = query.where(agents.c.agent_id > after).order_by(agents.c.agent_id).limit(_LISTED_AT_ONCE)
            rows = await self._database.read("list agents", partial(_all, query=part))
            for row in rows:
                yield row
            if len(rows) < _LISTED_AT_ONCE:
                return
            after = rows[-1].agent_id

    async def any_more_than(self, limit: int, verifier_id: VerifierId) -> bool:
        """Whether one verifier has more than `limit` agents."""
        some = sa.select(sa.literal(1)).where(agents.c.verifier_id == verifier_id).limit(limit + 1)
        count = sa.select(sa.func.count()).select_from(some.subquery())

        def work(connection: sa.Connection) -> bool:
            return int(connection.execute(count).scalar_one()) > limit

        return await self._database.read("count agents", work)

    async def load(self, wanted: Collection[AgentId]) -> list[AgentRecord]:
        """The records of those of the `wanted` agents that are there; a row that cannot be read is logged."""
        query = SELECT_RECORDS.where(agents.c.agent_id.in_(wanted)).order_by(agents.c.agent_id)
        return await self._records("read agents", query)

    async def _records(self, action: str, query: sa.Select[Any]) -> list[AgentRecord]:
        def work(connection: sa.Connection) -> Sequence[RowMapping]:
            return connection.execute(query).mappings().all()

        return _readable(await self._database.read(action, work))

    async def versions(self, owner: MemberId) -> dict[AgentId, AgentVersion]:
        """What the agents are at that `owner` is to poll; changes meanwhile may be in it or not."""
        query = _VERSIONS.where(shards.c.owner == owner)
        found, several = {}, {}
        async for row in self._pages(query):
            version = RowVersion(row.incarnation, row.epoch, row.recalls)
            found[row.agent_id] = AgentVersion(version, HeldVersions(row.runtime, row.boot))
            if row.runtime_parts:
                several[row.agent_id] = row
        if several:
            hashes, now = await self._database.read("read the versions of policies", _hashes_and_time)
            for agent_id, row in several.items():
                held_to = HeldVersions.of_parts(_parts_of(row.runtime_parts), hashes, row.boot, now)
                found[agent_id] = dataclasses.replace(found[agent_id], policies=held_to)
        return found

    async def load_polled(self, owner: MemberId, wanted: Sequence[AgentId]) -> list[AgentRecord]:
        """The records of those of the `wanted` agents that `owner` is to poll; unreadable ones are logged."""
        query = SELECT_RECORDS.where(
            agents.c.is_polled,
            sa.not_(agents.c.is_pushing),
            shards.c.owner == owner,
            agents.c.agent_id.in_(wanted),
        )
        return await self._records("read agents", query)

    async def secrets_of(self, agent_id: AgentId) -> Secrets | None:
        """The V share and the revocation key of an agent, or None when it is gone."""
        query = sa.select(agents.c.v, agents.c.revocation_key).where(agents.c.agent_id == agent_id)

        def work(connection: sa.Connection) -> Secrets | None:
            row = connection.execute(query).first()
            return None if row is None else Secrets(row.v, row.revocation_key)

        return await self._database.read("read an agent's secrets", work)

    async def stands_revoked(self, agent_id: AgentId) -> bool:
        """Whether the last message about an agent, of whatever enrolment, warned of it."""
        query = (
            sa.select(revocations.c.message)
            .where(revocations.c.agent_id == agent_id)
            # By their order, which no clock tells; those from before it was noted have a time alone.
            .order_by(revocations.c.made.desc(), revocations.c.created_at.desc(), revocations.c.number.desc())
            .limit(1)
        )

        def work(connection: sa.Connection) -> bool:
            message = connection.execute(query).scalar()
            return message is not None and not is_cleared(message)

        return await self._database.read("read revocations", work)

    async def read_v(self, agent_id: AgentId) -> bytes | None:
        """The V share of an agent, decoded, or None."""
        secrets = await self.secrets_of(agent_id)
        return None if secrets is None or secrets.v is None else base64.b64decode(secrets.v)

    async def add(
        self,
        enrolment: Enrolment,
        secrets: Secrets,
        version: str,
        new_policies: Mapping[PolicyKey, str],
        *,
        by: Actor | None = None,
    ) -> AgentRecord:
        """Stores a new agent and the policies that come with it, all or nothing. Raises AgentExists.

        `new_policies` maps (kind, name) to the policy's text. `by`, here and below, is whose act the history
        tells of.
        """
        addition = Addition(
            AgentRecord(_new_generation(), enrolment, Progress(supported_version=version)),
            secrets,
            new_policies,
            act_of(by, EventKind.ENROLLED, enrolment.agent_id, **details_of(enrolment)),
        )
        if addition.size > _SHARES_UP_TO:
            (record,) = await self._add_some([addition])
            return record
        return await self._additions.ask(addition)

    async def _add_some(self, additions: Sequence[Addition]) -> Sequence[AgentRecord]:
        return await self._database.write("add an agent", partial(write_additions, additions=additions))

    async def update(
        self,
        generation: str,
        enrolment: Enrolment,
        secrets: Secrets | None,
        version: str,
        new_policies: Mapping[PolicyKey, str],
        *,
        by: Actor | None = None,
        changes: Mapping[str, object] = {},
    ) -> AgentRecord | None:
        """Replaces the enrolment of an agent that is still of `generation`, and begins a new one.

        The policies that came with it are replaced, or removed when it uses others now. Without `secrets`
        those that are stored stay. None when somebody was faster. Raises AgentExists for a policy that has
        the agent's name and is not the agent's alone, UnreadableRecord. The history tells the `changes`.
        """
        agent_id = AgentId(enrolment.agent_id)
        event = act_of(by, EventKind.CHANGED, agent_id, **details_of(enrolment), **changes)

        def work(connection: sa.Connection) -> AgentRecord | None:
            publish(connection, Topic.AGENTS)
            row = connection.execute(SELECT_RECORDS.where(agents.c.agent_id == agent_id)).mappings().first()
            if row is None or row["incarnation"] != generation:
                return None
            old = record_of(row)
            try:
                _replace_policies(connection, old.enrolment, enrolment, new_policies)
            except IntegrityError as error:
                raise AgentExists(agent_id) from error
            anew = _begun_again(old.progress, OperationalState.START, version)
            changed = enrolment_columns(enrolment) | verdict_columns(anew)
            if secrets is not None:
                changed |= {"v": secrets.v, "revocation_key": secrets.revocation_key}
            record = AgentRecord(_new_generation(), enrolment, anew, old.claim, old.recalls)
            update_agent(connection, agent_id, changed)
            move_agent(connection, agent_id, position_columns(anew) | {"incarnation": record.generation})
            if old.enrolment.is_pushing:
                _stop_waiting(connection, agent_id)
            write_events(connection, [event])
            return record

        return await self._database.write("change an agent", work)

    async def begin_again(
        self, agent_id: AgentId, state: OperationalState, *, by: Actor | None = None
    ) -> AgentRecord | None:
        """Starts a new generation in `state`: nothing that was proven or found before counts any more.

        None when the agent is not there. Raises UnreadableRecord.
        """
        kind = EventKind.REACTIVATED if state in POLLED_STATES else EventKind.STOPPED
        event = act_of(by, kind, agent_id)

        def work(connection: sa.Connection) -> AgentRecord | None:
            publish(connection, Topic.AGENTS)
            row = connection.execute(SELECT_RECORDS.where(agents.c.agent_id == agent_id)).mappings().first()
            if row is None:
                return None
            old = record_of(row)
            anew = _begun_again(old.progress, state, old.progress.supported_version)
            record = AgentRecord(_new_generation(), old.enrolment, anew, old.claim, old.recalls)
            update_agent(connection, agent_id, verdict_columns(anew))
            move_agent(connection, agent_id, position_columns(anew) | {"incarnation": record.generation})
            if old.enrolment.is_pushing:
                _stop_waiting(connection, agent_id)
            write_events(connection, [event])
            return record

        return await self._database.write("change an agent", work)

    async def delete(self, agent_id: AgentId, *, by: Actor | None = None) -> bool:
        """Removes an agent, and the policies that came with it unless others use them. False: not there."""
        event = act_of(by, EventKind.DELETED, agent_id)

        def work(connection: sa.Connection) -> bool:
            publish(connection, Topic.AGENTS)
            columns = {RUNTIME: agents.c.runtime_policy, MEASURED_BOOT: agents.c.measured_boot_policy}
            names = connection.execute(
                sa.select(*columns.values()).where(agents.c.agent_id == agent_id)
            ).first()
            if names is None:
                return False
            connection.execute(sa.delete(agents).where(agents.c.agent_id == agent_id))
            connection.execute(sa.delete(progress).where(progress.c.agent_id == agent_id))
            connection.execute(sa.delete(pushing).where(pushing.c.agent_id == agent_id))
            connection.execute(sa.delete(attestations).where(attestations.c.agent_id == agent_id))
            remove_recipient(connection, agent_id)
            for kind, name in zip(columns, names, strict=True):
                # A policy of this name that the agent does not use did not come with it.
                in_use = sa.select(sa.exists().where(used_by(kind, agent_id)))
                if name == agent_id and not connection.execute(in_use).scalar():
                    delete_policy(connection, kind, agent_id)
            write_events(connection, [event])
            return True

        return await self._database.write("delete an agent", work)

    async def record_passes(
        self,
        records: Sequence[AgentRecord],
        learned: Collection[AgentId] = (),
        events: Mapping[AgentId, Sequence[Occurrence]] = {},
        *,
        can_wait: bool = True,
    ) -> list[VerdictRefusal]:
        """Writes rounds that changed counters and checkpoints only, in one transaction.

        Of the agents that were `learned` about, what lasts of the checkpoint is written as well, and what the
        history is to tell of some of them (`events`). Passes that `can_wait` give way to verdicts and acts.
        Refused are those of agents that another verifier has taken over, which is told to judge them again.
        What an operator or another's verdict has overtaken is left out without a word.
        """
        work = partial(write_passes, records=records, learned=learned, events=events)
        urgency = Urgency.CAN_WAIT if can_wait else Urgency.USUAL
        refused = await self._database.write("record attestations", work, urgency)
        return [VerdictRefusal(record, Ruling.TAKEN_OVER) for record in refused]

    async def record_change(
        self,
        record: AgentRecord,
        revocation: StoredRevocation | None,
        targets: Sequence[tuple[str, str]],
        *,
        held_to: HeldVersions | None = None,
        events: Sequence[Occurrence] = (),
    ) -> Ruling:
        """Writes a change of state, with the revocation it causes, in one transaction, if it counts.

        A rejection comes with the policies that the agent was `held_to`, and does not have to be the owner's.
        Who owns the agent's shard judges again what somebody else has rejected, or could not judge.
        `targets` are (channel, target) pairs, see `insert_revocation`; the history tells the `events`.
        What neither rejects nor revokes shares a transaction with others, unless that has failed before.
        """
        agent_id = record.agent_id
        if held_to is None and revocation is None and agent_id not in self._by_itself:
            self._by_itself.add(agent_id)
            ruling = await self._states.ask(StateChange(record, events))
            self._by_itself.discard(agent_id)
            return ruling
        work = partial(
            write_verdict,
            record=record,
            revocation=revocation,
            targets=targets,
            held_to=held_to,
            events=events,
        )
        ruling = await self._database.write("record a verdict", work)
        self._by_itself.discard(agent_id)
        return ruling

    async def _write_states(self, changes: Sequence[StateChange]) -> Sequence[Ruling]:
        return await self._database.write("record a verdict", partial(write_states, changes=changes))


def _stop_waiting(connection: sa.Connection, agent_id: str) -> None:
    """Nothing is overdue before the next verdict of an agent that attests by itself."""
    connection.execute(sa.update(pushing).where(pushing.c.agent_id == agent_id).values(deadline=None))


def _hashes_and_time(connection: sa.Connection) -> tuple[dict[str, TextHash], float]:
    hashes = {row.name: row.content_hash for row in connection.execute(_HASHES)}
    return hashes, connection.execute(sa.select(database_time())).scalar_one()


def _parts_of(text: str) -> tuple[PolicyPart, ...]:
    """An agent's parts; none, so that nothing can be as it should, where they cannot be read."""
    try:
        return decode_parts(text)
    except msgspec.DecodeError:
        return ()


def _begun_again(kept: Progress, state: OperationalState, version: str) -> Progress:
    return replace(
        Progress(supported_version=version, operational_state=state),
        is_polled=state in POLLED_STATES,
        attestation_count=kept.attestation_count,
        last_received_quote=kept.last_received_quote,
        last_successful_attestation=kept.last_successful_attestation,
    )


def _replace_policies(
    connection: sa.Connection,
    old: Enrolment,
    new: Enrolment,
    new_policies: Mapping[PolicyKey, str],
) -> None:
    """Stores `new_policies`; those that came with the agent before make room, unless others use them.

    Raises sqlalchemy's IntegrityError when a name is taken.
    """
    for kind, before, stays in (
        (RUNTIME, old.runtime_policy, new.uses_runtime_policy(old.runtime_policy)),
        (
            MEASURED_BOOT,
            old.measured_boot_policy,
            new.measured_boot_policy == old.measured_boot_policy,
        ),
    ):
        came_along = before == old.agent_id
        if came_along and (not stays or (kind, old.agent_id) in new_policies):
            used = sa.exists().where(used_by(kind, old.agent_id), agents.c.agent_id != old.agent_id)
            if not connection.execute(sa.select(used)).scalar():
                delete_policy(connection, kind, old.agent_id)
    for (brought, name), text in new_policies.items():
        put_policy(connection, brought, name, text)


def _new_generation() -> str:
    return uuid.uuid4().hex


def _all(connection: sa.Connection, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
    return connection.execute(query).all()


def _readable(rows: Iterable[RowMapping]) -> list[AgentRecord]:
    """The records in `rows`, without those that cannot be read."""
    records = []
    for row in rows:
        try:
            records.append(record_of(row))
        except UnreadableRecord as error:
            log.error("%s; the agent is left out", error)
    return records
