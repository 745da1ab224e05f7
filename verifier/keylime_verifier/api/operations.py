"""What operators can do to agents: add, show, list, stop, reactivate, delete. One method for each act."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from keylime import patience
from keylime.database.limits import limited
from keylime.errors import MalformedMessage, PolicyError
from keylime.identifiers import AgentId
from keylime.ima.policy_union import overlaps, unite
from keylime.messages.verifier import (
    NOTHING_JUDGED,
    AddAgentRequest,
    AgentStatus,
    OperationalState,
    UpdateAgentRequest,
    UpdatedAgent,
)
from keylime_verifier.agents.events import Actor, details_of
from keylime_verifier.agents.lifecycle import Cadence
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME
from keylime_verifier.agents.records import (
    AgentRecord,
    Enrolment,
    HeldVersions,
    PolicyPart,
    RowVersion,
    Secrets,
)
from keylime_verifier.agents.refusals import ChangingHands, InTheWay, NotThere, StoredUnreadable
from keylime_verifier.agents.shards import VerifierId
from keylime_verifier.agents.status import describe, shown_record
from keylime_verifier.api.enrolment import (
    EnrolmentRules,
    NewAgent,
    check_request,
    check_update,
    summarise_enrolment,
)
from keylime_verifier.policies.demands import judges_nothing
from keylime_verifier.policies.references import References
from keylime_verifier.policies.store import PolicyStore
from keylime_verifier.polling.additions import AgentExists
from keylime_verifier.polling.recorder import Recorder
from keylime_verifier.polling.rows import UnreadableRecord
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.sharing.roster import Roster

_NO_DEMAND = f"attested, {NOTHING_JUDGED}: no policy makes a demand of the agent"
_SHOWN_AT_ONCE = 100
_LOOKS = 20  # at an agent that changes hands all the time


class Agents:
    """The agents of all verifiers that share the database.

    What cannot be done raises RequestRefused with the words for the caller.
    Who owns an agent's shard polls it: this process at once, others as soon as they learn of the change.
    """

    def __init__(
        self,
        store: AgentStore,
        policies: PolicyStore,
        references: References,
        roster: Roster,
        recorder: Recorder,
        rules: EnrolmentRules,
        cadence: Cadence,
        now: Callable[[], float],
    ) -> None:
        """`now` is the clock that verdicts are stamped with."""
        self._store = store
        self._policies = policies
        self._references = references
        self._roster = roster
        self._recorder = recorder
        self._rules = rules
        self._cadence = cadence
        self._now = now

    async def add(self, agent_id: AgentId, request: AddAgentRequest, *, by: Actor | None) -> str | None:
        """Stores a new agent, which is polled from now on; returns what its operator should know, if any.

        `by`, here and below, is whose act the history tells of.
        """
        # In a thread: a large policy takes its time.
        new = await asyncio.to_thread(check_request, agent_id, request, self._rules)
        await self._check_names(new)
        remark = await self._check_parts(new.enrolment, ())
        self._references.know(new.compiled)  # before anybody finds the agent, who would compile it again
        try:
            secrets = new.secrets or Secrets(None, "")
            record = await self._store.add(new.enrolment, secrets, new.version, new.new_policies, by=by)
        except AgentExists as error:
            raise InTheWay(await self._what_exists(agent_id)) from error
        self._roster.adopt(record)
        return _NO_DEMAND if await self._judges_nothing(record) else remark

    async def update(
        self, agent_id: AgentId, request: UpdateAgentRequest, *, by: Actor | None
    ) -> tuple[UpdatedAgent, str | None]:
        """Replaces an agent's enrolment in one step, all or nothing; it is attested anew from then on.

        Returns what it was and is now, and what its operator should know, if anything.
        """
        try:
            old = await self._store.find(agent_id)
        except UnreadableRecord as error:
            raise StoredUnreadable(str(error)) from error
        if old is None:
            raise NotThere("agent id not found")
        before = await self._versions(old.enrolment)
        new = await asyncio.to_thread(
            check_update,
            old.enrolment,
            old.progress.supported_version,
            demands_ima=bool(old.enrolment.runtime_parts)
            or await self._references.demands_ima(before.runtime),
            request=request,
            rules=self._rules,
        )
        await self._check_names(new)
        remark = await self._check_parts(new.enrolment, old.enrolment.runtime_parts)
        self._references.know(new.compiled)
        await self._write_counters(agent_id)
        try:
            record = await self._store.update(
                old.generation,
                new.enrolment,
                new.secrets,
                new.version,
                new.new_policies,
                by=by,
                changes={"was": details_of(old.enrolment), "has_new_payload": new.secrets is not None},
            )
        except AgentExists as error:
            raise InTheWay(_policy_in_the_way(agent_id)) from error
        if record is None:
            raise InTheWay(f"Agent {agent_id} was changed or deleted meanwhile. Look, and try again.")
        self._roster.drop(agent_id)
        self._roster.adopt(record)
        after = await self._versions(record.enrolment)
        updated = UpdatedAgent(
            summarise_enrolment(old.enrolment, before), summarise_enrolment(record.enrolment, after)
        )
        return updated, _NO_DEMAND if await self._judges_nothing(record) else remark

    async def show(self, agent_id: AgentId) -> AgentStatus:
        """The status of one agent."""
        try:
            status = await self._look(agent_id)
        except UnreadableRecord as error:
            raise StoredUnreadable(str(error)) from error
        if status is None:
            raise NotThere("agent id not found")
        return status

    async def list_ids(self, verifier_id: VerifierId | None) -> list[AgentId]:
        """The ids of all agents, or those of one verifier."""
        return await self._store.list_ids(verifier_id)

    async def show_all(self, verifier_id: VerifierId | None) -> AsyncIterator[tuple[AgentId, AgentStatus]]:
        """The status of every agent, or of those of one verifier, one after the other by id."""
        await self._recorder.settle()
        ids = await self._store.list_ids(verifier_id)
        hashes = await self._policies.text_hashes(RUNTIME)
        runtime, boot = await self._policies.numbers(RUNTIME), await self._policies.numbers(MEASURED_BOOT)
        demands: dict[str, bool] = {}
        for first in range(0, len(ids), _SHOWN_AT_ONCE):
            part = ids[first : first + _SHOWN_AT_ONCE]
            before = {agent_id: self._known_here(agent_id) for agent_id in part}
            records = await self._store.load(part)
            # One of several policies is refused where it makes no demand.
            for name in {record.enrolment.runtime_policy for record in records} - demands.keys():
                demands[name] = await self._references.demands_ima(hashes.get(name))
            for record in records:
                agent_id = record.agent_id
                enrolment = record.enrolment
                if self._known_here(agent_id) != before[agent_id] or self._recorder.is_settling(agent_id):
                    status = await self._look(agent_id)
                else:
                    numbers = (
                        runtime.get(enrolment.runtime_policy),
                        boot.get(enrolment.measured_boot_policy or ""),
                    )
                    status = self._describe(record, demands[enrolment.runtime_policy], numbers)
                if status is not None:
                    yield agent_id, status
            await asyncio.sleep(0)  # whatever the database, others get their turn

    async def stop(self, agent_id: AgentId, *, by: Actor | None) -> None:
        """Ends the polling of an agent; it shows as failed until it is reactivated."""
        await self._begin_again(agent_id, OperationalState.TENANT_FAILED, by)

    async def reactivate(self, agent_id: AgentId, *, by: Actor | None) -> None:
        """Polls an agent again from the start; it is not shown as passing before its next pass (D3, S10)."""
        self._roster.adopt(await self._begin_again(agent_id, OperationalState.START, by))

    async def delete(self, agent_id: AgentId, *, by: Actor | None) -> None:
        """Removes an agent and ends its polling; what a round in flight finds misses the row (S5)."""
        is_deleted = await self._store.delete(agent_id, by=by)
        self._roster.drop(agent_id)
        if not is_deleted:
            raise NotThere("agent id not found")

    async def _begin_again(self, agent_id: AgentId, state: OperationalState, by: Actor | None) -> AgentRecord:
        # First the database, then the poller: when the database refuses, polling goes on as it was.
        await self._write_counters(agent_id)
        try:
            record = await self._store.begin_again(agent_id, state, by=by)
        except UnreadableRecord as error:
            raise StoredUnreadable(str(error)) from error
        if record is None:
            raise NotThere("agent id not found")
        self._roster.drop(agent_id)
        return record

    async def _write_counters(self, agent_id: AgentId) -> None:
        """The counters that an operator's act keeps are those that were shown."""
        with patience.apart():
            async with limited("change an agent"):  # a batch may be under way, which waits longer
                await self._recorder.flush_one(agent_id)

    async def _versions(self, enrolment: Enrolment) -> HeldVersions:
        boot = enrolment.measured_boot_policy
        found = {part.name: await self._policies.text_hash(RUNTIME, part.name) for part in enrolment.parts}
        return HeldVersions.found(
            enrolment,
            {name: text_hash for name, text_hash in found.items() if text_hash is not None},
            None if boot is None else await self._policies.text_hash(MEASURED_BOOT, boot),
            self._now(),
        )

    async def _check_parts(self, enrolment: Enrolment, before: Sequence[PolicyPart]) -> str | None:
        """Several runtime policies hold together; what their operator should know of it, if anything.

        Those of `before` may have ended. Raises PolicyError, MalformedMessage, NotThere.
        """
        parts = enrolment.runtime_parts
        if not parts:
            return None
        for part in parts:
            if part not in before and not part.holds(self._now()):
                raise MalformedMessage(f"runtime_policies: {part.name!r} has ended already: leave it out")
            if await self._policies.text_hash(RUNTIME, part.name) is None:
                raise NotThere(f"Could not find IMA policy with name {part.name}!")
        compiled = await self._references.compiled_parts([part.name for part in parts])
        try:
            await asyncio.to_thread(unite, [policy for _, policy in compiled])
        except PolicyError as error:
            names = ", ".join(part.name for part in parts)
            raise PolicyError(f"runtime_policies ({names}): {error}") from error
        return "; ".join(await asyncio.to_thread(overlaps, compiled)) or None

    async def _check_names(self, new: NewAgent) -> None:
        """Names that must be stored are; policies that came along do not replace others (L8)."""
        wanted = {RUNTIME: new.enrolment.runtime_policy, MEASURED_BOOT: new.enrolment.measured_boot_policy}
        texts = {RUNTIME: "IMA policy", MEASURED_BOOT: "mb_policy"}
        for kind, name in wanted.items():
            if name is None:
                continue
            is_stored = await self._policies.text_hash(kind, name) is not None
            if (kind, name) not in new.new_policies and not is_stored:
                raise NotThere(f"Could not find {texts[kind]} with name {name}!")
            if (kind, name) in new.new_policies and is_stored and name != new.enrolment.agent_id:
                raise InTheWay(f"{texts[kind]} with name {name} already exists.")

    async def _what_exists(self, agent_id: AgentId) -> str:
        """Why an agent cannot be stored: there it is, or its policy would take the place of another."""
        if await self._store.ak_tpm_of(agent_id) is not None:
            return f"Agent of uuid {agent_id} already exists. Please use delete or update."
        return _policy_in_the_way(agent_id)

    async def _judges_nothing(self, record: AgentRecord) -> bool:
        text_hash = await self._policies.text_hash(RUNTIME, record.enrolment.runtime_policy)
        demands_ima = await self._references.demands_ima(text_hash)
        return judges_nothing(record.enrolment, runtime_policy=demands_ima)

    async def _look(self, agent_id: AgentId) -> AgentStatus | None:
        """The status of one agent; None when it is not there. Raises UnreadableRecord.

        What became of a verdict while the row was read is not in the row: then it is read again, for what a
        row said before a verdict must not be shown after it.
        """
        for _ in range(_LOOKS):
            await self._recorder.settle(agent_id)
            before = self._known_here(agent_id)
            record = await self._store.find(agent_id)
            if record is None:
                return None
            enrolment = record.enrolment
            demands_ima = await self._references.demands_ima(
                await self._policies.text_hash(RUNTIME, enrolment.runtime_policy)
            )
            boot = enrolment.measured_boot_policy
            numbers = (
                await self._policies.number(RUNTIME, enrolment.runtime_policy),
                None if boot is None else await self._policies.number(MEASURED_BOOT, boot),
            )
            if self._known_here(agent_id) == before and not self._recorder.is_settling(agent_id):
                return self._describe(record, demands_ima, numbers)
        raise ChangingHands("The agent is changing hands, try again later")

    def _known_here(self, agent_id: AgentId) -> tuple[RowVersion | None, AgentRecord | None]:
        """Changes when this process begins or ceases to know more of an agent than the database."""
        return self._roster.row_version(agent_id), self._recorder.waiting_verdict(agent_id)

    def _describe(
        self, record: AgentRecord, demands_ima: bool, numbers: tuple[int | None, int | None]
    ) -> AgentStatus:
        """`numbers` are those of the versions of its policies."""
        agent_id = record.agent_id
        freshest, is_unwritten = shown_record(
            record, self._roster.current(agent_id), self._recorder.unwritten(agent_id)
        )
        return describe(
            freshest,
            has_runtime_policy=demands_ima,
            judges_nothing=judges_nothing(freshest.enrolment, runtime_policy=demands_ima),
            cadence=self._cadence,
            now=int(self._now()),
            is_unwritten=is_unwritten,
            policy_versions=_told_numbers(freshest.enrolment, numbers),
        )


def _told_numbers(
    enrolment: Enrolment, numbers: tuple[int | None, int | None]
) -> tuple[int | None, int | None]:
    """Of policies that have a name of their own; those that came with the agent are replaced with it."""
    runtime, boot = numbers
    return (
        None if enrolment.runtime_policy == enrolment.agent_id else runtime,
        None if enrolment.measured_boot_policy == enrolment.agent_id else boot,
    )


def _policy_in_the_way(agent_id: AgentId) -> str:
    return (
        f"A policy with name {agent_id} already exists, and is not replaced by that of an agent of this "
        "id: name the agent's policy, or delete the other one."
    )
