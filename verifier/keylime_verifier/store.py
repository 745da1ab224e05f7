"""Agents in the verifier's database: each method is one transaction; rows come out as typed records."""

import base64
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy import RowMapping
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime_verifier.backlog import add_recipient, remove_recipient
from keylime_verifier.changes import Topic, announce
from keylime_verifier.fencing import still_owned
from keylime_verifier.lifecycle import POLLED_STATES
from keylime_verifier.outbox import insert_revocation
from keylime_verifier.ownership import Claim, MemberId, shard_of
from keylime_verifier.policy_store import MEASURED_BOOT, RUNTIME, delete_policy, put_policy
from keylime_verifier.records import (
    AgentRecord,
    Enrolment,
    PolicyVersions,
    Progress,
    Secrets,
    Standing,
    StoredRevocation,
)
from keylime_verifier.rows import UnreadableRecord, enrolment_columns, progress_columns, record_of
from keylime_verifier.schema import agents, policies, shards
from keylime_verifier.transactions import read, write

log = logging.getLogger(__name__)


# Names of parameters that are no columns begin with an underscore.
_UPDATE_MANY = sa.update(agents).where(
    agents.c.agent_id == sa.bindparam("_agent_id"), agents.c.incarnation == sa.bindparam("_incarnation")
)

_CLAIMED = agents.outerjoin(
    shards, sa.and_(shards.c.verifier_id == agents.c.verifier_id, shards.c.shard == agents.c.shard)
)
_SELECT = sa.select(agents, shards.c.owner, shards.c.epoch).select_from(_CLAIMED)
_RUNTIME_POLICY, _BOOT_POLICY = policies.alias("runtime_policy"), policies.alias("boot_policy")
_STANDINGS = (
    sa.select(
        agents.c.agent_id,
        agents.c.incarnation,
        shards.c.epoch,
        _RUNTIME_POLICY.c.content_hash.label("runtime"),
        _BOOT_POLICY.c.content_hash.label("boot"),
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
    .where(agents.c.is_polled)
)


class AgentExists(KeylimeError):
    """The id is taken."""


class AgentStore:
    """The agents of all verifiers that share this database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def find(self, agent_id: AgentId) -> AgentRecord | None:
        """The record of one agent, or None. Raises UnreadableRecord."""
        async with read(self._engine, "read an agent") as connection:
            row = (await connection.execute(_SELECT.where(agents.c.agent_id == agent_id))).mappings().first()
        return None if row is None else record_of(row)

    async def ak_tpm_of(self, agent_id: AgentId) -> str | None:
        """The AK of an agent, base64 of its TPM2B_PUBLIC, or None."""
        query = sa.select(agents.c.ak_tpm).where(agents.c.agent_id == agent_id)
        async with read(self._engine, "read an agent's AK") as connection:
            found: str | None = (await connection.execute(query)).scalar()
        return found

    async def list_ids(self, verifier_id: str | None = None) -> list[str]:
        """All agent ids, or those of one verifier, sorted."""
        query = sa.select(agents.c.agent_id).order_by(agents.c.agent_id)
        if verifier_id:
            query = query.where(agents.c.verifier_id == verifier_id)
        async with read(self._engine, "list agents") as connection:
            return list((await connection.execute(query)).scalars())

    async def load(self, verifier_id: str | None = None) -> list[AgentRecord]:
        """All records, or those of one verifier; a row that cannot be read is logged."""
        query = _SELECT.order_by(agents.c.agent_id)
        if verifier_id:
            query = query.where(agents.c.verifier_id == verifier_id)
        async with read(self._engine, "read agents") as connection:
            return _readable((await connection.execute(query)).mappings())

    async def standings(self, owner: MemberId) -> dict[AgentId, Standing]:
        """What the agents are at that `owner` is to poll."""
        async with read(self._engine, "list agents") as connection:
            rows = await connection.execute(_STANDINGS.where(shards.c.owner == owner))
        return {
            row.agent_id: Standing(row.incarnation, row.epoch, PolicyVersions(row.runtime, row.boot))
            for row in rows
        }

    async def load_polled(self, owner: MemberId, wanted: Sequence[AgentId]) -> list[AgentRecord]:
        """The records of those of the `wanted` agents that `owner` is to poll; unreadable ones are logged."""
        query = _SELECT.where(agents.c.is_polled, shards.c.owner == owner, agents.c.agent_id.in_(wanted))
        async with read(self._engine, "read agents") as connection:
            return _readable((await connection.execute(query)).mappings())

    async def secrets_of(self, agent_id: AgentId) -> Secrets | None:
        """The V share and the revocation key of an agent, or None when it is gone."""
        query = sa.select(agents.c.v, agents.c.revocation_key).where(agents.c.agent_id == agent_id)
        async with read(self._engine, "read an agent's secrets") as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else Secrets(row.v, row.revocation_key)

    async def read_v(self, agent_id: AgentId) -> bytes | None:
        """The V share of an agent, decoded, or None."""
        secrets = await self.secrets_of(agent_id)
        return None if secrets is None or secrets.v is None else base64.b64decode(secrets.v)

    async def add(
        self,
        enrolment: Enrolment,
        secrets: Secrets,
        version: str,
        new_policies: Mapping[tuple[str, str], str],
    ) -> AgentRecord:
        """Stores a new agent and the policies that come with it, all or nothing. Raises AgentExists.

        `new_policies` maps (kind, name) to the policy's text.
        """
        record = AgentRecord(_new_incarnation(), enrolment, Progress(supported_version=version))
        values = {
            **enrolment_columns(enrolment),
            **progress_columns(record.progress),
            "incarnation": record.incarnation,
            "v": secrets.v,
            "revocation_key": secrets.revocation_key,
        }
        async with write(self._engine, "add an agent") as connection:
            await announce(connection, Topic.AGENTS)
            try:
                for (kind, name), text in new_policies.items():
                    await put_policy(connection, kind, name, text)
                await connection.execute(sa.insert(agents).values(values))
                await add_recipient(connection, enrolment.agent_id)
            except IntegrityError as error:
                raise AgentExists(enrolment.agent_id) from error
            return replace(record, claim=await _claim_of(connection, enrolment))

    async def begin_again(self, agent_id: AgentId, state: OperationalState) -> AgentRecord | None:
        """Starts a new incarnation in `state`: nothing that was proven or found before counts any more.

        None when the agent is not there. Raises UnreadableRecord.
        """
        async with write(self._engine, "change an agent") as connection:
            await announce(connection, Topic.AGENTS)
            row = (await connection.execute(_SELECT.where(agents.c.agent_id == agent_id))).mappings().first()
            if row is None:
                return None
            old = record_of(row)
            kept = old.progress
            progress = replace(
                Progress(supported_version=kept.supported_version, operational_state=state),
                is_polled=state in POLLED_STATES,
                attestation_count=kept.attestation_count,
                last_received_quote=kept.last_received_quote,
                last_successful_attestation=kept.last_successful_attestation,
            )
            record = AgentRecord(_new_incarnation(), old.enrolment, progress, old.claim)
            await connection.execute(
                sa.update(agents)
                .where(agents.c.agent_id == agent_id)
                .values({**progress_columns(progress), "incarnation": record.incarnation})
            )
        return record

    async def delete(self, agent_id: AgentId) -> bool:
        """Removes an agent, and the policies that came with it unless others use them. False: not there."""
        async with write(self._engine, "delete an agent") as connection:
            await announce(connection, Topic.AGENTS)
            deleted = await connection.execute(sa.delete(agents).where(agents.c.agent_id == agent_id))
            await remove_recipient(connection, agent_id)
            if deleted.rowcount:
                used_by = {RUNTIME: agents.c.runtime_policy, MEASURED_BOOT: agents.c.measured_boot_policy}
                for kind, column in used_by.items():
                    in_use = sa.select(sa.exists().where(column == agent_id))
                    if not (await connection.execute(in_use)).scalar():
                        await delete_policy(connection, kind, agent_id)
        return bool(deleted.rowcount)

    async def record_passes(self, records: Sequence[AgentRecord]) -> list[AgentRecord]:
        """Writes rounds that changed counters and checkpoints only, in one transaction.

        Those that were refused, because another verifier has taken the agents over, are returned.
        """
        async with write(self._engine, "record attestations") as connection:
            ours = await still_owned(connection, records)
            rows = [
                {"_agent_id": record.agent_id, "_incarnation": record.incarnation}
                | progress_columns(record.progress)
                for record in ours
            ]
            if rows:
                await connection.execute(_UPDATE_MANY, rows)
        written = {record.agent_id for record in ours}
        return [record for record in records if record.agent_id not in written]

    async def record_change(
        self, record: AgentRecord, revocation: StoredRevocation | None, targets: Sequence[tuple[str, str]]
    ) -> bool:
        """Writes a change of state, with the revocation it causes, in one transaction.

        False, and nothing written, when an operator has stopped, reactivated or deleted the agent meanwhile,
        or another verifier has taken it over. `targets` are (channel, target) pairs, see `insert_revocation`.
        """
        async with write(self._engine, "record a verdict") as connection:
            if not await still_owned(connection, (record,)) or not await _update_progress(connection, record):
                return False
            if revocation is not None:
                await insert_revocation(connection, revocation, record.enrolment.verifier_id, targets)
        return True


async def _claim_of(connection: AsyncConnection, enrolment: Enrolment) -> Claim:
    query = sa.select(shards.c.owner, shards.c.epoch).where(
        shards.c.verifier_id == enrolment.verifier_id, shards.c.shard == shard_of(enrolment.agent_id)
    )
    row = (await connection.execute(query)).first()
    return Claim() if row is None else Claim(row.owner, row.epoch)


async def _update_progress(connection: AsyncConnection, record: AgentRecord) -> bool:
    updated = await connection.execute(
        sa.update(agents)
        .where(agents.c.agent_id == record.agent_id, agents.c.incarnation == record.incarnation)
        .values(progress_columns(record.progress))
    )
    return bool(updated.rowcount)


def _new_incarnation() -> str:
    return uuid.uuid4().hex


def _readable(rows: Iterable[RowMapping]) -> list[AgentRecord]:
    """The records in `rows`, without those that cannot be read."""
    records = []
    for row in rows:
        try:
            records.append(record_of(row))
        except UnreadableRecord as error:
            log.error("%s; the agent is left out", error)
    return records
