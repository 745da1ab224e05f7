"""What an old database has for this verifier, and what of it is new here."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from keylime.errors import KeylimeError
from keylime.takeover.releases import VERIFIER_VERSION
from keylime.takeover.report import Fate, Item, ItemKind, TakeoverReport, second_of
from keylime.takeover.values import Row, shown, text_of
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME, PolicyKey
from keylime_verifier.takeover.agents import (
    AgentProposal,
    OldAgent,
    Registered,
    RowContext,
    TakeoverRules,
    convert,
)
from keylime_verifier.takeover.policies import OldPolicy, boot_policy, item_of, row_id, runtime_policy

TABLE = "verifiermain"
REGISTRAR_TABLE = "registrarmain"


class OldDatabase(Protocol):
    """The old tables. Every method raises ConfigError when they cannot be read."""

    @property
    def place(self) -> str: ...

    @property
    def tables(self) -> frozenset[str]: ...

    def release(self, version_table: str, /) -> str: ...

    def rows(self, table: str, /) -> Iterator[Row]: ...


_KINDS = {RUNTIME: ItemKind.RUNTIME_POLICY, MEASURED_BOOT: ItemKind.BOOT_POLICY}
_SAME_NAME = "another one has the same name; add it under another, and the agents that use it as well"
_ITS_AGENT = "it is the policy of the agent of this name, which is not taken"


@dataclass(frozen=True, slots=True)
class Plan:
    """What an old database has for us: policies with names of their own, and agents with theirs."""

    source: str
    release: str
    policies: Mapping[PolicyKey, OldPolicy]
    proposals: tuple[AgentProposal, ...]


@dataclass(frozen=True, slots=True)
class Here:
    """What our tables hold of it: the AK of each agent, the content hash of each policy."""

    agents: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[PolicyKey, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewRecords:
    """What is to be written: policies as (text, TPM policy), and agents."""

    policies: Mapping[PolicyKey, tuple[str, str | None]]
    agents: tuple[OldAgent, ...]


def read_plan(old: OldDatabase, registrar: OldDatabase | None, rules: TakeoverRules) -> Plan | None:
    """What is to be taken from `old`; None when it holds no verifier's tables. Raises ConfigError.

    `registrar` has the registrations of the same installation, if they are elsewhere and can be read.
    """
    if TABLE not in old.tables:
        return None
    release = old.release(VERIFIER_VERSION)
    runtime = _by_id(old.rows("allowlists"), runtime_policy)
    boot = _by_id(old.rows("mbpolicies"), lambda row: boot_policy(row, rules.compile_boot_policy))
    around = RowContext(runtime.by_id, boot.by_id, _registered(registrar or old), rules)
    proposals: dict[object, AgentProposal] = {}
    for number, row in enumerate(old.rows(TABLE)):
        proposal = convert(row, around)
        is_second = proposal.item.name in proposals
        key = number if is_second or proposal.agent is None else proposal.item.name
        proposals[key] = AgentProposal(second_of(proposal.item)) if is_second else proposal
    policies = {(RUNTIME, policy.name): policy for policy in runtime.by_name.values()}
    policies |= {(MEASURED_BOOT, policy.name): policy for policy in boot.by_name.values()}
    ordered = sorted(proposals.values(), key=lambda one: one.item.name)
    return Plan(old.place, release, policies, tuple(ordered))


@dataclass(slots=True)
class _Policies:
    by_id: dict[int, OldPolicy] = field(default_factory=dict)
    by_name: dict[str, OldPolicy] = field(default_factory=dict)


def _by_id(rows: Iterable[Row], read: Callable[[Row], OldPolicy]) -> _Policies:
    policies = _Policies()
    texts: dict[str, str] = {}  # thousands of agents may have the same text each
    for row in sorted(rows, key=lambda row: row_id(row) or 0):
        policy = read(row)
        if policy.text is not None:
            policy = replace(policy, text=texts.setdefault(policy.text, policy.text))
        if policy.name in policies.by_name:
            policy = OldPolicy(f"{policy.name} (id {row_id(row)})", problem=_SAME_NAME)
        policies.by_name[policy.name] = policy
        number = row_id(row)
        if number is not None:
            policies.by_id[number] = policy
    return policies


def _registered(old: OldDatabase) -> dict[str, Registered]:
    found = {}
    for row in old.rows(REGISTRAR_TABLE):
        try:
            agent_id, key = text_of(row, "agent_id"), text_of(row, "aik_tpm")
            if agent_id is not None:
                found[agent_id] = Registered(key, text_of(row, "mtls_cert"))
        except KeylimeError:
            continue  # the registrar says so when it takes its own over
    return found


def settle(plan: Plan, here: Here) -> tuple[NewRecords, TakeoverReport]:
    """What of a plan is new, and the report. Nothing that is here is changed."""
    return _Settlement(plan, here).all()


@dataclass(slots=True)
class _Settlement:
    plan: Plan
    here: Here
    policies: dict[PolicyKey, tuple[str, str | None]] = field(default_factory=dict)
    agents: list[OldAgent] = field(default_factory=list)

    def all(self) -> tuple[NewRecords, TakeoverReport]:
        ids = {proposal.item.name for proposal in self.plan.proposals}
        of_agents = {key: policy for key, policy in self.plan.policies.items() if policy.name in ids}
        items = [
            self._named_policy(key, policy)
            for key, policy in self.plan.policies.items()
            if key not in of_agents
        ]
        # Agents that use another one's policy come after it.
        ordered = sorted(self.plan.proposals, key=lambda one: _borrows(one.agent, ids))
        agents = sorted((self._agent(proposal) for proposal in ordered), key=lambda item: item.name)
        by_name: dict[str, Item] = {}
        for agent in agents:
            if agent.fate is not Fate.NOT_TAKEN or agent.name not in by_name:
                by_name[agent.name] = agent
        for key, policy in of_agents.items():
            if policy.text is not None or policy.problem is not None:
                items.append(self._policy_of(by_name[policy.name], key, policy))
        items.extend(agents)
        return NewRecords(self.policies, tuple(self.agents)), TakeoverReport(
            self.plan.source, self.plan.release, tuple(items)
        )

    def _named_policy(self, key: PolicyKey, policy: OldPolicy) -> Item:
        kind = _KINDS[key[0]]
        if policy.text is None:
            return item_of(kind, policy)
        if key not in self.here.policies:
            self.policies[key] = (policy.text, policy.tpm_policy)
            return item_of(kind, policy)
        if self.here.policies[key] == _hash(policy.text):
            return Item(kind, policy.name, Fate.PRESENT)
        remark = (
            "another one of this name is here, and stays: if the old one is right, delete it and import again"
        )
        return Item(kind, policy.name, Fate.PRESENT, (remark,))

    def _agent(self, proposal: AgentProposal) -> Item:
        item, agent = proposal.item, proposal.agent
        if agent is None:
            return item
        agent_id = agent.enrolment.agent_id
        if agent_id in self.here.agents:
            remark = (
                f"with another AK, which stays: `keylime_tenant -c delete -u {agent_id}`, then import again"
            )
            is_same = self.here.agents[agent_id] == agent.enrolment.ak_tpm
            return Item(item.kind, item.name, Fate.PRESENT, () if is_same else (remark,))
        needs = self._needs(agent)
        problems = [
            problem for key, text in needs.items() if (problem := self._obstacle(key, text, agent_id))
        ]
        if problems:
            return Item(item.kind, item.name, Fate.NOT_TAKEN, tuple(problems))
        remarks = list(item.remarks)
        for key, text in needs.items():
            if key not in self.here.policies:
                self.policies.setdefault(key, (text, None))
            elif self.here.policies[key] != _hash(text):
                remarks.append(f"it is held to the {_KINDS[key[0]].value} {shown(key[1])} that is here")
        self.agents.append(agent)
        return Item.of(item.kind, item.name, remarks)

    def _needs(self, agent: OldAgent) -> dict[PolicyKey, str]:
        """The policies of an agent, with their texts."""
        names = {RUNTIME: agent.enrolment.runtime_policy, MEASURED_BOOT: agent.enrolment.measured_boot_policy}
        own = {RUNTIME: agent.own_runtime, MEASURED_BOOT: agent.own_boot}
        needs = {}
        for kind, name in names.items():
            if name is not None:
                needs[kind, name] = own[kind] or self.plan.policies[kind, name].text or ""
        return needs

    def _obstacle(self, key: PolicyKey, text: str, agent_id: str) -> str | None:
        kind, name = _KINDS[key[0]].value, shown(key[1])
        if key[1] == agent_id and self.here.policies.get(key, _hash(text)) != _hash(text):
            return f"another {kind} {name} is here, and stays: delete it and import again"
        if key in self.policies and self.policies[key][0] != text:
            return f"its {kind} {name} is that of another agent, which uses it in another way: add it anew"
        return None

    def _policy_of(self, agent: Item, key: PolicyKey, policy: OldPolicy) -> Item:
        """What became of a policy that bears the name of an agent."""
        kind = _KINDS[key[0]]
        if agent.fate is Fate.PRESENT:
            return Item(kind, policy.name, Fate.PRESENT)
        if policy.problem is not None:
            return item_of(kind, policy)
        if agent.fate is Fate.NOT_TAKEN and key not in self.policies:
            return Item(kind, policy.name, Fate.NOT_TAKEN, (_ITS_AGENT,))
        return Item.of(kind, policy.name, policy.remarks)


def _borrows(agent: OldAgent | None, ids: Collection[str]) -> bool:
    """Whether an agent uses a policy that bears the name of another one."""
    if agent is None:
        return False
    enrolment = agent.enrolment
    names = {enrolment.runtime_policy, enrolment.measured_boot_policy} - {enrolment.agent_id}
    return not names.isdisjoint(ids)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
