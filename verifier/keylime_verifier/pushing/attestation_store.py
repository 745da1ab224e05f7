"""Attestations in the database: each method is one transaction, which requests that come together share.

Transactions for several agents write table by table, and each table in the order of its agents: no two of
them wait for each other.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace

from keylime.database.together import Together
from keylime.database.transactions import Database
from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime.messages.push_attestation import Stage
from keylime.messages.push_evidence import Received
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME, TextHash
from keylime_verifier.agents.pushing import PASSING
from keylime_verifier.agents.records import AgentRecord, PushState
from keylime_verifier.agents.shards import MemberId, ShardClaim
from keylime_verifier.database.schema import (
    agents,
    attestations,
    policies,
    progress,
    pushing,
    sessions,
    shards,
)
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
from keylime_verifier.pushing.known_agents import CallingAgent, KnownAgents, still_stands
from keylime_verifier.pushing.session_store import SELECT_SESSIONS, session_of
from keylime_verifier.pushing.sessions import PushSession
from keylime_verifier.pushing.verdict_writes import JUDGED_SOON, AttestationEnd

_OVERDUE_AT_ONCE = 500
_WRITINGS_APART_S = 0.012  # what comes faster is written together
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
_OVERDUE = (
    SELECT_RECORDS.where(
        agents.c.is_pushing,
        agents.c.is_polled,
        agents.c.operational_state == int(PASSING),
        shards.c.owner == sa.bindparam("of_owner"),
        pushing.c.deadline < sa.bindparam("now"),
        sa.not_(sa.exists().where(attestations.c.agent_id == agents.c.agent_id, JUDGED_SOON)),
    )
    .order_by(agents.c.agent_id)
    .limit(_OVERDUE_AT_ONCE)
)

# All that may have changed of what is known of some agents: rows of narrow tables, found by their keys.
_RUNTIME_POLICY, _BOOT_POLICY = policies.alias("runtime_policy"), policies.alias("boot_policy")
_STANDING_NAMES = [name for name in Attestation.__struct_fields__ if name not in ("agent_id", "items")]
_NOW = sa.select(
    *SELECT_SESSIONS.selected_columns,
    progress.c.incarnation,
    progress.c.recalls,
    shards.c.owner,
    shards.c.epoch,
    pushing.c.next_number,
    pushing.c.judged,
    pushing.c.deadline,
    _RUNTIME_POLICY.c.content_hash,
    _BOOT_POLICY.c.content_hash,
    *(attestations.c[name] for name in _STANDING_NAMES),
).select_from(
    agents.join(progress, progress.c.agent_id == agents.c.agent_id)
    .join(pushing, pushing.c.agent_id == agents.c.agent_id)
    .join(sessions, sessions.c.agent_id == agents.c.agent_id)
    .outerjoin(
        shards, sa.and_(shards.c.verifier_id == agents.c.verifier_id, shards.c.shard == agents.c.shard)
    )
    .outerjoin(
        _RUNTIME_POLICY,
        sa.and_(_RUNTIME_POLICY.c.kind == RUNTIME, _RUNTIME_POLICY.c.name == agents.c.runtime_policy),
    )
    .outerjoin(
        _BOOT_POLICY,
        sa.and_(_BOOT_POLICY.c.kind == MEASURED_BOOT, _BOOT_POLICY.c.name == agents.c.measured_boot_policy),
    )
    .outerjoin(
        attestations,
        sa.and_(
            attestations.c.agent_id == agents.c.agent_id,
            attestations.c.number == pushing.c.next_number - 1,
        ),
    )
)


def _now_of(size: int) -> tuple[sa.Select[Any], list[str], list[str]]:
    """The statement that finds so many agents by themselves and their sessions, and the names of those."""
    of_agents, of_sessions = (
        [f"of_{what}_{place}" for place in range(size)] for what in ("agent", "session")
    )
    given = [[sa.bindparam(name, type_=sa.String()) for name in names] for names in (of_agents, of_sessions)]
    of_one = size == 1
    statement = _NOW.where(
        *(
            column == values[0] if of_one else column.in_(values)
            for column, values in zip((agents.c.agent_id, sessions.c.session_id), given, strict=True)
        )
    )
    return statement, of_agents, of_sessions


_MOST_NOW = 128
# Of some sizes: what is put together for any number of values costs as much as to execute it.
_NOW_OF = {size: _now_of(size) for size in (1, 2, 4, 8, 16, 32, 64, _MOST_NOW)}
_ID_IN_SESSION, _AGENT_IN_SESSION = 0, 1
_OF_SESSION = len(PushSession.__struct_fields__)
_OF_AGENT_NOW = _OF_SESSION + 9


class Outdated(KeylimeError):
    """What was remembered of an agent is not so any more; nothing was written."""


class _Look(msgspec.Struct, frozen=True):
    agent_id: AgentId
    session_id: str
    remembered: CallingAgent | None


class _Writing(msgspec.Struct, frozen=True):
    """An attestation as it is to be: new, or with the evidence that the one there awaits.

    It counts only if `remembered`, of which it was made, still stands; None if it was read just before.
    """

    attestation: Attestation
    remembered: CallingAgent | None
    supersedes: bool = False  # one that awaits evidence

    @property
    def is_new(self) -> bool:
        """Whether it is to be stored, and not to be changed."""
        return self.attestation.stage == AWAITING

    @property
    def look(self) -> _Look | None:
        """By what it is found out whether that still stands."""
        if self.remembered is None:
            return None
        session = self.remembered.session
        session_id = "" if session is None else session.session_id
        return _Look(AgentId(self.attestation.agent_id), session_id, self.remembered)

    @property
    def change(self) -> dict[str, Any]:
        """The parameters of `_COUNT` or `_TAKE`."""
        attestation = self.attestation
        if self.is_new:
            return {"of_agent": attestation.agent_id, "number": attestation.number}
        return {
            "of_agent": attestation.agent_id,
            "of_number": attestation.number,
            "stage": attestation.stage,
            "evidence_at": attestation.evidence_at,
            "completed_at": attestation.completed_at,
            "items": encode_items(attestation.items),
        }

    @property
    def place(self) -> tuple[str, int]:
        """Whose, and which."""
        return self.attestation.agent_id, self.attestation.number


class AttestationStore:
    """The attestations of all agents."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known = KnownAgents()
        self._looks = Together("look at an attestation", self._look)
        self._writings = Together("write an attestation", self._write, writes=True, apart_s=_WRITINGS_APART_S)

    def remembered(self, agent_id: AgentId) -> CallingAgent | None:
        """What is known of an agent without a look, which may be wrong by now."""
        return self._known.get(agent_id)

    async def look(self, agent_id: AgentId, session_id: str) -> CallingAgent:
        """What is known of an agent, and of the session that it says is its own. Raises UnreadableRecord."""
        found = await self._looks.ask(_Look(agent_id, session_id, self._known.get(agent_id)))
        self._known.seen(found)
        return found

    async def _look(self, asked: Sequence[_Look]) -> list[CallingAgent | Exception]:
        def work(connection: sa.Connection) -> list[CallingAgent | Exception]:
            return [_calling(connection, one) for one in asked]

        return await self._database.read("look at an attestation", work)

    def judged(self, record: AgentRecord, end: AttestationEnd | None) -> None:
        """A verdict about an agent was written, or its silence."""
        self._known.judged(record, end)

    async def agent_of(self, session_id: str) -> AgentId:
        """Whose session it is said to be; nobody's is empty."""
        query = sa.select(sessions.c.agent_id).where(sessions.c.session_id == session_id)
        found = await self._database.read(
            "find a session", lambda connection: connection.execute(query).scalar()
        )
        return AgentId(found or "")

    async def negotiate(
        self, attestation: Attestation, remembered: CallingAgent | None = None, *, supersedes: bool = True
    ) -> bool:
        """Stores a new attestation in the place of one that awaits evidence. False: somebody was faster.

        Who has just seen that none does says that nothing is to be superseded. Raises Outdated.
        """
        is_first = await self._written(_Writing(attestation, remembered, supersedes))
        if is_first:
            self._known.negotiated(attestation)
        return is_first

    async def receive(
        self,
        attestation: Attestation,
        items: Sequence[Received],
        at: float,
        stage: Stage = EVALUATING,
        remembered: CallingAgent | None = None,
    ) -> Attestation | None:
        """The attestation with its evidence, which it takes once. None: somebody was faster.

        It is over at that `stage` if nobody will judge it. Raises Outdated.
        """
        completed_at = at if stage == COMPLETE else None
        changed = replace(
            attestation, stage=stage, evidence_at=at, completed_at=completed_at, items=tuple(items)
        )
        if not await self._written(_Writing(changed, remembered)):
            return None
        self._known.received(changed)
        return changed

    async def _written(self, writing: _Writing) -> bool:
        try:
            return await self._writings.ask(writing)
        except Outdated:
            self._known.forget(AgentId(writing.attestation.agent_id))
            raise

    async def _write(self, asked: Sequence[_Writing]) -> list[bool | Exception]:
        def work(connection: sa.Connection) -> list[bool | Exception]:
            return _write_all(connection, asked)

        return await self._database.write("write an attestation", work)

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
        parameters = {"of_owner": owner, "now": now, "judged_after": now - judging_s}
        rows = await self._database.read(
            "look for silent agents",
            lambda connection: connection.execute(_OVERDUE, parameters).mappings().all(),
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


def _calling(connection: sa.Connection, asked: _Look) -> CallingAgent | Exception:
    try:
        return _as_remembered(connection, asked) or _read_anew(connection, asked)
    except UnreadableRecord as error:
        return error


def _rows_now(connection: sa.Connection, asked: Sequence[_Look]) -> dict[tuple[str, str], sa.Row[Any]]:
    """Rows of `_NOW`, by agent and session, of those that are there."""
    found: dict[tuple[str, str], sa.Row[Any]] = {}
    for first in range(0, len(asked), _MOST_NOW):
        some = asked[first : first + _MOST_NOW]
        statement, of_agents, of_sessions = _NOW_OF[1 << (len(some) - 1).bit_length()]
        all_of_them = [*some, *([some[-1]] * (len(of_agents) - len(some)))]
        parameters = {
            **dict(zip(of_agents, (one.agent_id for one in all_of_them), strict=True)),
            **dict(zip(of_sessions, (one.session_id for one in all_of_them), strict=True)),
        }
        for row in connection.execute(statement, parameters):
            found[row[_AGENT_IN_SESSION], row[_ID_IN_SESSION]] = row
    return found


def _as_remembered(
    connection: sa.Connection, asked: _Look, row: sa.Row[Any] | None = None
) -> CallingAgent | None:
    """What is found of an agent whose record is as it is remembered; None where all must be read.

    `row` is that of `_NOW`, if it has been read already.
    """
    remembered = asked.remembered
    if remembered is None or remembered.record is None:
        return None
    record = remembered.record
    if row is None:
        row = _rows_now(connection, [asked]).get((asked.agent_id, asked.session_id))
    if row is None:
        return None
    incarnation, recalls, owner, epoch, next_number, judged, deadline, runtime, boot = row[
        _OF_SESSION:_OF_AGENT_NOW
    ]
    if (incarnation, recalls) != (record.generation, record.recalls):
        return None
    claim = ShardClaim() if epoch is None else ShardClaim(owner, epoch)
    push = PushState(judged, deadline)
    if (claim, push) != (record.claim, record.push):
        record = replace(record, claim=claim, push=push)
    if record.enrolment.runtime_parts:
        hashes = read_hashes(connection, record.enrolment)
    else:
        named: dict[tuple[str, str], TextHash | None] = {
            (RUNTIME, record.enrolment.runtime_policy): runtime,
            (MEASURED_BOOT, record.enrolment.measured_boot_policy or ""): boot,
        }
        hashes = {name: text_hash for name, text_hash in named.items() if text_hash is not None}
    standing = row[_OF_AGENT_NOW:]
    latest = None
    if standing[0] is not None:
        latest = Attestation(
            agent_id=asked.agent_id, items=(), **dict(zip(_STANDING_NAMES, standing, strict=True))
        )
        if latest.stage == AWAITING:
            latest = _with_items(connection, latest, remembered.latest)
    return CallingAgent(session_of(row[:_OF_SESSION]), record, next_number, latest, hashes)


def _with_items(connection: sa.Connection, found: Attestation, known: Attestation | None) -> Attestation:
    """What an attestation awaits, which never changes."""
    is_known = known is not None and (known.number, known.generation) == (found.number, found.generation)
    if known is not None and is_known and known.stage == AWAITING:
        return replace(found, items=known.items)
    row = connection.execute(_LATEST, {"of_agent": found.agent_id}).first()
    return found if row is None else attestation_of(row)


def _read_anew(connection: sa.Connection, asked: _Look) -> CallingAgent:
    of_agent = {"of_agent": asked.agent_id}
    session = connection.execute(_SESSION, {"of_session": asked.session_id}).first()
    row = connection.execute(_AGENT, of_agent).mappings().first()
    record = None if row is None else record_of(row)
    latest = connection.execute(_LATEST, of_agent).first()
    found = None if latest is None else attestation_of(latest)
    return CallingAgent(
        None if session is None else session_of(session),
        record,
        None if row is None else row["next_number"],
        found if found is None or found.stage == AWAITING else replace(found, items=()),
        {} if record is None else read_hashes(connection, record.enrolment),
    )


def _write_all(connection: sa.Connection, asked: Sequence[_Writing]) -> list[bool | Exception]:
    """What came of each: whether it was done, or came too late, or from what is not so."""
    order = sorted(asked, key=lambda one: one.place)
    new = [one for one in order if one.is_new]
    rows: Mapping[tuple[str, str], sa.Row[Any]] = {}
    is_one_of_each = len({one.attestation.agent_id for one in asked}) == len(asked)
    if is_one_of_each:
        rows = _rows_now(connection, [one.look for one in asked if one.look is not None])

    def write(statement: sa.Update, some: Sequence[_Writing]) -> None:
        # Of one agent each must see what came of the one before.
        for part in [some] if is_one_of_each else [[one] for one in some]:
            results.update(_write_part(connection, statement, part, rows))

    results: dict[int, bool | Exception] = {}
    write(_COUNT, new)
    if connection.dialect.name == "sqlite":  # where nobody else writes, all of a kind is written at once
        order = [*new, *(one for one in order if not one.is_new)]
    for is_new, some in itertools.groupby(order, lambda one: one.is_new):
        if is_new:
            _store_new(connection, [one for one in some if results[id(one)] is True])
        else:
            write(_TAKE, list(some))
    return [results[id(one)] for one in asked]


def _store_new(connection: sa.Connection, new: Sequence[_Writing]) -> None:
    superseding = [{"of_agent": one.attestation.agent_id} for one in new if one.supersedes]
    if superseding:
        connection.execute(_SUPERSEDED, superseding)
    if new:
        connection.execute(_NEW, [one.attestation.columns for one in new])


def _write_part(
    connection: sa.Connection,
    statement: sa.Update,
    part: Sequence[_Writing],
    rows: Mapping[tuple[str, str], sa.Row[Any]],
) -> Iterator[tuple[int, bool | Exception]]:
    """What came of each, by its identity, where `statement` changes one row for each that is not outdated."""
    sure: list[_Writing] = []
    for one in part:
        outdated = _outdated(connection, one, rows)
        if outdated is not None:
            yield id(one), outdated
        elif one.remembered is not None and connection.dialect.name == "sqlite":
            sure.append(one)
        else:
            yield id(one), connection.execute(statement, one.change).rowcount == 1
    if sure:
        # Nobody else writes meanwhile: what was found to be so just now is still.
        changed = connection.execute(statement, [one.change for one in sure]).rowcount
        if changed != len(sure):
            raise RuntimeError(f"{changed} attestations of {len(sure)} were as they had been found")
        yield from ((id(one), True) for one in sure)


def _outdated(
    connection: sa.Connection, one: _Writing, rows: Mapping[tuple[str, str], sa.Row[Any]]
) -> Outdated | None:
    look = one.look
    if look is None or look.remembered is None:
        return None
    found = _as_remembered(connection, look, rows.get((look.agent_id, look.session_id)))
    if found is not None and still_stands(look.remembered, found):
        return None
    return Outdated("the agent has changed since")
