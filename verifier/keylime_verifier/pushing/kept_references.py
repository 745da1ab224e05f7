"""References of agents that attest by themselves, kept from one request to the next.

Whoever asks has just read which versions of the policies are stored, so that nobody has to say what is
outdated.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from keylime.appraisal.reference import Reference
from keylime.identifiers import AgentId
from keylime_verifier.agents.policy_categories import PolicyHashes
from keylime_verifier.agents.records import AgentRecord, Enrolment, HeldVersions

MOST_KEPT = 10_000
"""Agents, those that came last."""

Build = Callable[[Enrolment, PolicyHashes], Awaitable[tuple[Reference, HeldVersions]]]


@dataclass(frozen=True, slots=True)
class _Kept:
    generation: str
    policies: PolicyHashes
    reference: Reference
    versions: HeldVersions
    used_at: float


class KeptReferences:
    """By agent; one that does not come any more, and its policies with it, is forgotten when others come."""

    def __init__(
        self, build: Build, now: Callable[[], float], *, kept_s: float, most: int = MOST_KEPT
    ) -> None:
        """`now` is the clock by which policies end, `kept_s` how long an agent may not have come."""
        self._build = build
        self._now = now
        self._kept_s = kept_s
        self._most = most
        self._kept: OrderedDict[AgentId, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    async def of(self, record: AgentRecord, policies: PolicyHashes) -> tuple[Reference, HeldVersions]:
        """What an agent is judged by whose `policies` are stored. Raises KeylimeError."""
        agent_id, now = record.agent_id, self._now()
        kept = self._kept.get(agent_id)
        if kept is None or not _holds(kept, record, policies, now):
            self._kept.pop(agent_id, None)
            reference, versions = await self._build(record.enrolment, policies)
        else:
            reference, versions = kept.reference, kept.versions
        self._kept[agent_id] = _Kept(record.generation, policies, reference, versions, now)
        self._kept.move_to_end(agent_id)
        self._forget(now - self._kept_s)
        return reference, versions

    def _forget(self, before: float) -> None:
        while self._kept:
            agent_id, oldest = next(iter(self._kept.items()))
            if len(self._kept) <= self._most and oldest.used_at >= before:
                return
            del self._kept[agent_id]


def _holds(kept: _Kept, record: AgentRecord, policies: PolicyHashes, now: float) -> bool:
    until = kept.versions.until
    is_over = until is not None and now >= until
    # A time from before the clock was set back says nothing of what has ended.
    return (
        kept.generation == record.generation
        and kept.policies == policies
        and not is_over
        and now >= kept.used_at
    )
