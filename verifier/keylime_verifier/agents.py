"""What operators can do to agents: add, show, list, stop, reactivate, delete. One method for each act."""

import asyncio
import time
from collections.abc import Iterable

from keylime.http.server import HttpError
from keylime.identifiers import AgentId
from keylime.messages.verifier import AddAgentRequest, AgentStatus, OperationalState
from keylime_verifier.enrolment import EnrolmentRules, NewAgent, check_request
from keylime_verifier.journal import Journal
from keylime_verifier.lifecycle import Cadence
from keylime_verifier.policy_store import MEASURED_BOOT, RUNTIME, PolicyStore
from keylime_verifier.records import AgentRecord
from keylime_verifier.references import References
from keylime_verifier.roster import Roster
from keylime_verifier.rows import UnreadableRecord
from keylime_verifier.status import describe
from keylime_verifier.store import AgentExists, AgentStore


class Agents:
    """The agents of all verifiers that share the database; raises HttpError with the answer for the caller.

    Who owns an agent's shard polls it: this process at once, others as soon as they learn of the change.
    """

    def __init__(
        self,
        store: AgentStore,
        policies: PolicyStore,
        references: References,
        roster: Roster,
        journal: Journal,
        rules: EnrolmentRules,
        cadence: Cadence,
    ) -> None:
        self._store = store
        self._policies = policies
        self._references = references
        self._roster = roster
        self._journal = journal
        self._rules = rules
        self._cadence = cadence

    async def add(self, agent_id: AgentId, request: AddAgentRequest) -> None:
        """Stores a new agent, which is polled from now on."""
        # In a thread: a large policy takes its time.
        new = await asyncio.to_thread(check_request, agent_id, request, self._rules)
        await self._check_names(new)
        try:
            record = await self._store.add(new.enrolment, new.secrets, new.version, new.new_policies)
        except AgentExists as error:
            text = f"Agent of uuid {agent_id} already exists. Please use delete or update."
            raise HttpError(409, text) from error
        self._roster.adopt(record)

    async def show(self, agent_id: AgentId) -> AgentStatus:
        """The status of one agent."""
        try:
            record = await self._store.find(agent_id)
        except UnreadableRecord as error:
            raise HttpError(500, str(error)) from error
        if record is None:
            raise HttpError(404, "agent id not found")
        content_hash = await self._policies.content_hash(RUNTIME, record.enrolment.runtime_policy)
        return await self._describe(record, content_hash)

    async def list_ids(self, verifier_id: str | None) -> list[str]:
        """The ids of all agents, or those of one verifier."""
        return await self._store.list_ids(verifier_id)

    async def show_all(self, verifier_id: str | None) -> dict[str, AgentStatus]:
        """The status of every agent, or of those of one verifier, by id."""
        records: Iterable[AgentRecord] = await self._store.load(verifier_id)
        hashes = await self._policies.content_hashes(RUNTIME)
        return {
            record.agent_id: await self._describe(record, hashes.get(record.enrolment.runtime_policy))
            for record in records
        }

    async def stop(self, agent_id: AgentId) -> None:
        """Ends the polling of an agent; it shows as failed until it is reactivated."""
        await self._begin_again(agent_id, OperationalState.TENANT_FAILED)

    async def reactivate(self, agent_id: AgentId) -> None:
        """Polls an agent again from the start; it is not shown as passing before its next pass (R3, S10)."""
        self._roster.adopt(await self._begin_again(agent_id, OperationalState.START))

    async def delete(self, agent_id: AgentId) -> None:
        """Removes an agent and ends its polling; what a round in flight finds misses the row (S5)."""
        is_deleted = await self._store.delete(agent_id)
        self._roster.drop(agent_id)
        if not is_deleted:
            raise HttpError(404, "agent id not found")

    async def _begin_again(self, agent_id: AgentId, state: OperationalState) -> AgentRecord:
        # First the database, then the poller: when the database refuses, polling goes on as it was.
        await self._journal.flush()  # the counters that are kept are those that were shown
        try:
            record = await self._store.begin_again(agent_id, state)
        except UnreadableRecord as error:
            raise HttpError(500, str(error)) from error
        if record is None:
            raise HttpError(404, "agent id not found")
        self._roster.drop(agent_id)
        return record

    async def _check_names(self, new: NewAgent) -> None:
        """Names that must be stored are; policies that came along do not replace others (rest-api 4.2)."""
        wanted = {RUNTIME: new.enrolment.runtime_policy, MEASURED_BOOT: new.enrolment.measured_boot_policy}
        texts = {RUNTIME: "IMA policy", MEASURED_BOOT: "mb_policy"}
        for kind, name in wanted.items():
            if name is None:
                continue
            is_stored = await self._policies.content_hash(kind, name) is not None
            if (kind, name) not in new.new_policies and not is_stored:
                raise HttpError(404, f"Could not find {texts[kind]} with name {name}!")
            if (kind, name) in new.new_policies and is_stored and name != new.enrolment.agent_id:
                raise HttpError(409, f"{texts[kind]} with name {name} already exists.")

    async def _describe(self, record: AgentRecord, content_hash: str | None) -> AgentStatus:
        polled = self._roster.current(record.agent_id)
        # Another verifier may have taken the agent over without this one knowing yet.
        freshest = polled if polled is not None and polled.span == record.span else record
        demands_ima = await self._references.demands_ima(content_hash)
        return describe(freshest, has_runtime_policy=demands_ima, cadence=self._cadence, now=int(time.time()))
