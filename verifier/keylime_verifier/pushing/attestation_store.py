"""Attestations in the database: each method is one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from keylime.database.transactions import Database
from keylime.identifiers import AgentId
from keylime.messages.push_attestation import Stage
from keylime.messages.push_evidence import Received
from keylime_verifier.agents.policy_categories import PolicyHashes
from keylime_verifier.agents.pushing import PASSING
from keylime_verifier.agents.records import AgentRecord
from keylime_verifier.agents.shards import MemberId
from keylime_verifier.database.schema import agents, attestations, pushing, sessions, shards
from keylime_verifier.policies.store import read_hashes
from keylime_verifier.polling.rows import UnreadableRecord, record_of
from keylime_verifier.polling.store import SELECT_RECORDS
from keylime_verifier.pushing.attestation_rows import (
    AWAITING,
    COMPLETE,
    EVALUATING,
    Attestation,
    attestation_of,
    encode_items,
)
from keylime_verifier.pushing.session_store import SELECT_SESSIONS, session_of
from keylime_verifier.pushing.sessions import PushSession

_OVERDUE_AT_ONCE = 500
# Statements of every attestation, which are made once: that costs more than to execute them.
_OF_AGENT = attestations.c.agent_id == sa.bindparam("of_agent")
_SESSION = SELECT_SESSIONS.where(sessions.c.session_id == sa.bindparam("of_session"))
_AGENT = SELECT_RECORDS.add_columns(pushing.c.next_number).where(
    agents.c.agent_id == sa.bindparam("of_agent")
)
_LATEST = sa.select(attestations).where(_OF_AGENT).order_by(attestations.c.number.desc()).limit(1)
_COUNT = (
    sa.update(pushing)
    .where(pushing.c.agent_id == sa.bindparam("of_agent"), pushing.c.next_number == sa.bindparam("number"))
    .values(next_number=pushing.c.next_number + 1)
)
_SUPERSEDED = sa.delete(attestations).where(_OF_AGENT, attestations.c.stage == AWAITING)
_NEW = sa.insert(attestations)
_TAKE = sa.update(attestations).where(
    _OF_AGENT,
    attestations.c.number == sa.bindparam("of_number"),
    attestations.c.stage == AWAITING,
)


@dataclass(frozen=True, slots=True)
class CallingAgent:
    """What is known of an agent that calls: its session, its record, its latest attestation.

    `next_number` is None of an agent that is not there, or does not attest by itself.
    """

    session: PushSession | None
    record: AgentRecord | None
    next_number: int | None
    latest: Attestation | None
    policies: PolicyHashes = field(default_factory=dict)  # which the agent is held to


class AttestationStore:
    """The attestations of all agents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def look(self, agent_id: AgentId, session_id: str) -> CallingAgent:
        """What is known of an agent, and of the session that it says is its own. Raises UnreadableRecord."""

        def work(connection: sa.Connection) -> CallingAgent:
            session = connection.execute(_SESSION, {"of_session": session_id}).first()
            row = connection.execute(_AGENT, {"of_agent": agent_id}).mappings().first()
            record = None if row is None else record_of(row)
            latest = connection.execute(_LATEST, {"of_agent": agent_id}).first()
            return CallingAgent(
                None if session is None else session_of(session),
                record,
                None if row is None else row["next_number"],
                None if latest is None else attestation_of(latest),
                {} if record is None else read_hashes(connection, record.enrolment),
            )

        return await self._database.read("look at an attestation", work)

    async def agent_of(self, session_id: str) -> AgentId:
        """Whose session it is said to be; nobody's is empty."""
        query = sa.select(sessions.c.agent_id).where(sessions.c.session_id == session_id)
        found = await self._database.read(
            "find a session", lambda connection: connection.execute(query).scalar()
        )
        return AgentId(found or "")

    async def negotiate(self, attestation: Attestation) -> bool:
        """Stores a new attestation in the place of one that awaits evidence. False: somebody was faster."""
        of_agent = {"of_agent": attestation.agent_id}

        def work(connection: sa.Connection) -> bool:
            if connection.execute(_COUNT, {**of_agent, "number": attestation.number}).rowcount != 1:
                return False
            connection.execute(_SUPERSEDED, of_agent)
            connection.execute(_NEW, attestation.columns)
            return True

        return await self._database.write("negotiate an attestation", work)

    async def receive(
        self, attestation: Attestation, items: Sequence[Received], at: float, stage: Stage = EVALUATING
    ) -> Attestation | None:
        """The attestation with its evidence, which it takes once. None: somebody was faster.

        It is over at that `stage` if nobody will judge it.
        """
        completed_at = at if stage == COMPLETE else None
        changed = replace(
            attestation, stage=stage, evidence_at=at, completed_at=completed_at, items=tuple(items)
        )
        values = {
            "of_agent": attestation.agent_id,
            "of_number": attestation.number,
            "stage": stage,
            "evidence_at": at,
            "completed_at": completed_at,
            "items": encode_items(items),
        }
        is_ours = await self._database.write(
            "receive evidence", lambda connection: connection.execute(_TAKE, values).rowcount == 1
        )
        return changed if is_ours else None

    async def of_agent(self, agent_id: AgentId, number: int | None = None) -> list[Attestation] | None:
        """The attestations of an agent, or the one with this number; None if it attests none by itself."""
        is_known = sa.select(pushing.c.agent_id).where(pushing.c.agent_id == agent_id)
        query = sa.select(attestations).where(attestations.c.agent_id == agent_id)
        if number is not None:
            query = query.where(attestations.c.number == number)

        def work(connection: sa.Connection) -> list[Attestation] | None:
            if connection.execute(is_known).first() is None:
                return None
            return [attestation_of(row) for row in connection.execute(query.order_by(attestations.c.number))]

        return await self._database.read("read attestations", work)

    async def overdue(self, owner: MemberId, now: float, judging_s: float) -> list[AgentRecord]:
        """Agents of shards of `owner` that pass so far and should have attested again; some of many.

        Whose evidence came less than `judging_s` ago and has no verdict, or could have none, is not silent.
        """
        heard = sa.exists().where(
            attestations.c.agent_id == agents.c.agent_id,
            attestations.c.evaluation == "pending",
            attestations.c.evidence_at > now - judging_s,
        )
        query = (
            SELECT_RECORDS.where(
                agents.c.is_pushing,
                agents.c.is_polled,
                agents.c.operational_state == int(PASSING),
                shards.c.owner == owner,
                pushing.c.deadline < now,
                sa.not_(heard),
            )
            .order_by(agents.c.agent_id)
            .limit(_OVERDUE_AT_ONCE)
        )
        rows = await self._database.read(
            "look for silent agents", lambda connection: connection.execute(query).mappings().all()
        )
        records = []
        for row in rows:
            try:
                records.append(record_of(row))
            except UnreadableRecord:  # whoever is asked about it says so
                continue
        return records

    async def give_up(self, before: float, now: float) -> int:
        """Ends attestations without a verdict whose evidence came before a time; how many.

        Whoever took it has ended, or would have judged it. A verdict that comes yet takes the place of this.
        """
        lost = (
            sa.update(attestations)
            .where(attestations.c.stage == EVALUATING, attestations.c.evidence_at < before)
            .values(stage=COMPLETE, completed_at=now)
        )
        return await self._database.write("give up verdicts", lambda one: one.execute(lost).rowcount)

    async def prune(self, before: float) -> None:
        """Forgets attestations of before a time, but for the latest of each agent."""
        number = sa.select(pushing.c.next_number).where(pushing.c.agent_id == attestations.c.agent_id)
        old = sa.delete(attestations).where(
            attestations.c.received_at < before, attestations.c.number < number.scalar_subquery() - 1
        )
        await self._database.write("forget attestations", lambda connection: connection.execute(old))
