"""Agents in the verifier's database: each method is one transaction; rows come out as typed records."""

import base64
import json
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import RowMapping
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.appraisal.checkpoint import decode_checkpoint, encode_checkpoint
from keylime.errors import KeylimeError
from keylime.identifiers import AgentId, parse_agent_id
from keylime.messages.verifier import FindingSummary, OperationalState
from keylime_verifier.outbox import insert_revocation
from keylime_verifier.policy_store import MEASURED_BOOT, RUNTIME, delete_policy, put_policy
from keylime_verifier.records import AgentRecord, Enrolment, Progress, Secrets, StoredRevocation
from keylime_verifier.schema import agents
from keylime_verifier.transactions import read, write

log = logging.getLogger(__name__)


# Names of parameters that are no columns begin with an underscore.
_UPDATE_MANY = sa.update(agents).where(
    agents.c.agent_id == sa.bindparam("_agent_id"), agents.c.incarnation == sa.bindparam("_incarnation")
)


class AgentExists(KeylimeError):
    """The id is taken."""


class UnreadableRecord(KeylimeError):
    """A row that we did not write, or that got damaged; names the agent."""


class AgentStore:
    """The agents of all verifiers that share this database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def find(self, agent_id: AgentId) -> AgentRecord | None:
        """The record of one agent, or None. Raises UnreadableRecord."""
        async with read(self._engine, "read an agent") as connection:
            row = (
                (await connection.execute(sa.select(agents).where(agents.c.agent_id == agent_id)))
                .mappings()
                .first()
            )
        return None if row is None else _record_of(row)

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

    async def load(
        self, verifier_id: str | None = None, states: Iterable[OperationalState] | None = None
    ) -> list[AgentRecord]:
        """All records, or those of one verifier and some states; a row that cannot be read is logged."""
        query = sa.select(agents).order_by(agents.c.agent_id)
        if verifier_id:
            query = query.where(agents.c.verifier_id == verifier_id)
        if states is not None:
            query = query.where(agents.c.operational_state.in_([int(state) for state in states]))
        async with read(self._engine, "read agents") as connection:
            rows = (await connection.execute(query)).mappings().all()
        records = []
        for row in rows:
            try:
                records.append(_record_of(row))
            except UnreadableRecord as error:
                log.error("%s; the agent is left out", error)
        return records

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
            **_enrolment_columns(enrolment),
            **_progress_columns(record.progress),
            "incarnation": record.incarnation,
            "v": secrets.v,
            "revocation_key": secrets.revocation_key,
        }
        async with write(self._engine, "add an agent") as connection:
            try:
                for (kind, name), text in new_policies.items():
                    await put_policy(connection, kind, name, text)
                await connection.execute(sa.insert(agents).values(values))
            except IntegrityError as error:
                raise AgentExists(enrolment.agent_id) from error
        return record

    async def begin_again(self, agent_id: AgentId, state: OperationalState) -> AgentRecord | None:
        """Starts a new incarnation in `state`: nothing that was proven or found before counts any more.

        None when the agent is not there. Raises UnreadableRecord.
        """
        async with write(self._engine, "change an agent") as connection:
            row = (
                (await connection.execute(sa.select(agents).where(agents.c.agent_id == agent_id)))
                .mappings()
                .first()
            )
            if row is None:
                return None
            old = _record_of(row)
            kept = old.progress
            progress = replace(
                Progress(supported_version=kept.supported_version, operational_state=state),
                attestation_count=kept.attestation_count,
                last_received_quote=kept.last_received_quote,
                last_successful_attestation=kept.last_successful_attestation,
            )
            record = AgentRecord(_new_incarnation(), old.enrolment, progress)
            await connection.execute(
                sa.update(agents)
                .where(agents.c.agent_id == agent_id)
                .values({**_progress_columns(progress), "incarnation": record.incarnation})
            )
        return record

    async def delete(self, agent_id: AgentId) -> bool:
        """Removes an agent, and the policies that came with it unless others use them. False: not there."""
        async with write(self._engine, "delete an agent") as connection:
            deleted = await connection.execute(sa.delete(agents).where(agents.c.agent_id == agent_id))
            if deleted.rowcount:
                used_by = {RUNTIME: agents.c.runtime_policy, MEASURED_BOOT: agents.c.measured_boot_policy}
                for kind, column in used_by.items():
                    in_use = sa.select(sa.exists().where(column == agent_id))
                    if not (await connection.execute(in_use)).scalar():
                        await delete_policy(connection, kind, agent_id)
        return bool(deleted.rowcount)

    async def record_passes(self, records: Sequence[AgentRecord]) -> None:
        """Writes rounds that changed counters and checkpoints only, in one transaction."""
        rows = [
            {"_agent_id": record.agent_id, "_incarnation": record.incarnation}
            | _progress_columns(record.progress)
            for record in records
        ]
        async with write(self._engine, "record attestations") as connection:
            await connection.execute(_UPDATE_MANY, rows)

    async def record_change(
        self, record: AgentRecord, revocation: StoredRevocation | None, targets: Sequence[tuple[str, str]]
    ) -> bool:
        """Writes a change of state, with the revocation it causes, in one transaction.

        False, and nothing written, when an operator has stopped, reactivated or deleted the agent meanwhile.
        `targets` are (channel, target) pairs beside the agents, which are looked up here.
        """
        async with write(self._engine, "record a verdict") as connection:
            if not await _update_progress(connection, record):
                return False
            if revocation is not None:
                await insert_revocation(connection, revocation, record.enrolment.verifier_id, targets)
        return True


async def _update_progress(connection: AsyncConnection, record: AgentRecord) -> bool:
    updated = await connection.execute(
        sa.update(agents)
        .where(agents.c.agent_id == record.agent_id, agents.c.incarnation == record.incarnation)
        .values(_progress_columns(record.progress))
    )
    return bool(updated.rowcount)


def _new_incarnation() -> str:
    return uuid.uuid4().hex


def _enrolment_columns(enrolment: Enrolment) -> dict[str, Any]:
    return {
        "agent_id": enrolment.agent_id,
        "ip": enrolment.ip,
        "port": enrolment.port,
        "mtls_cert": enrolment.mtls_cert,
        "ak_tpm": enrolment.ak_tpm,
        "verifier_id": enrolment.verifier_id,
        "verifier_ip": enrolment.verifier_ip,
        "verifier_port": enrolment.verifier_port,
        "meta_data": enrolment.meta_data,
        "tpm_policy": enrolment.tpm_policy,
        "runtime_policy": enrolment.runtime_policy,
        "measured_boot_policy": enrolment.measured_boot_policy,
        "ima_sign_verification_keys": enrolment.ima_sign_verification_keys,
        "accept_tpm_hash_algs": json.dumps(enrolment.accept_tpm_hash_algs),
        "accept_tpm_encryption_algs": json.dumps(enrolment.accept_tpm_encryption_algs),
        "accept_tpm_signing_algs": json.dumps(enrolment.accept_tpm_signing_algs),
    }


def _progress_columns(progress: Progress) -> dict[str, Any]:
    return {
        "operational_state": int(progress.operational_state),
        "supported_version": progress.supported_version,
        "severity_level": progress.severity_level,
        "last_event_id": progress.last_event_id,
        "last_findings": msgspec.json.encode(progress.last_findings).decode()
        if progress.last_findings
        else None,
        "attestation_count": progress.attestation_count,
        "last_received_quote": progress.last_received_quote,
        "last_successful_attestation": progress.last_successful_attestation,
        "unreachable_since": progress.unreachable_since,
        "hash_alg": progress.hash_alg,
        "enc_alg": progress.enc_alg,
        "sign_alg": progress.sign_alg,
        "v_delivered_to": progress.v_delivered_to,
        "checkpoint": encode_checkpoint(progress.checkpoint),
    }


def _record_of(row: RowMapping) -> AgentRecord:
    """The record in `row`. Raises UnreadableRecord."""
    try:
        return _parse_row(row)
    except (ValueError, TypeError, AttributeError, msgspec.DecodeError, KeylimeError) as error:
        raise UnreadableRecord(f"the record of agent {row['agent_id']!r} cannot be read: {error}") from error


def _parse_row(row: RowMapping) -> AgentRecord:
    enrolment = Enrolment(
        agent_id=parse_agent_id(row["agent_id"]),
        ip=row["ip"],
        port=row["port"],
        mtls_cert=row["mtls_cert"],
        ak_tpm=row["ak_tpm"],
        verifier_id=row["verifier_id"],
        verifier_ip=row["verifier_ip"],
        verifier_port=row["verifier_port"],
        has_v=row["v"] is not None,
        meta_data=row["meta_data"],
        tpm_policy=row["tpm_policy"],
        runtime_policy=row["runtime_policy"],
        measured_boot_policy=row["measured_boot_policy"],
        ima_sign_verification_keys=row["ima_sign_verification_keys"],
        accept_tpm_hash_algs=tuple(json.loads(row["accept_tpm_hash_algs"])),
        accept_tpm_encryption_algs=tuple(json.loads(row["accept_tpm_encryption_algs"])),
        accept_tpm_signing_algs=tuple(json.loads(row["accept_tpm_signing_algs"])),
    )
    progress = Progress(
        operational_state=OperationalState(row["operational_state"]),
        supported_version=row["supported_version"],
        severity_level=row["severity_level"],
        last_event_id=row["last_event_id"],
        last_findings=_findings_of(row["last_findings"]),
        attestation_count=row["attestation_count"],
        last_received_quote=row["last_received_quote"],
        last_successful_attestation=row["last_successful_attestation"],
        unreachable_since=row["unreachable_since"],
        hash_alg=row["hash_alg"],
        enc_alg=row["enc_alg"],
        sign_alg=row["sign_alg"],
        v_delivered_to=row["v_delivered_to"],
        checkpoint=decode_checkpoint(row["checkpoint"]),
    )
    return AgentRecord(row["incarnation"], enrolment, progress)


def _findings_of(text: str | None) -> tuple[FindingSummary, ...]:
    return tuple(msgspec.json.decode(text, type=list[FindingSummary])) if text else ()
