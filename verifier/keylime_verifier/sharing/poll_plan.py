"""Which agents a verifier polls, by what the database says. Decisions only: `roster` carries them out."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from keylime.identifiers import AgentId
from keylime_verifier.agents.records import AgentVersion, HeldVersions, RowVersion

_ASKED_IN_A_SECOND = 500  # of agents that are taken over together


@dataclass(frozen=True, slots=True)
class PollPlan:
    """What is to be done: agents that are dropped, held to policies as they are now, and adopted.

    Those that are put off are adopted when what waits to be written about them is.
    """

    drop: frozenset[AgentId]
    hold: Mapping[AgentId, HeldVersions]
    adopt: tuple[AgentId, ...]
    put_off: frozenset[AgentId]


def plan_polls(
    stored: Mapping[AgentId, AgentVersion],
    polled: Mapping[AgentId, RowVersion],
    *,
    touched: Collection[AgentId],
    unreadable: Mapping[AgentId, RowVersion],
    waits: Callable[[AgentId], bool],
) -> PollPlan:
    """The plan for the agents that are `stored` for us, where some are `polled` already.

    What an operator has `touched` since the database was asked is as the operator wants it. What was
    `unreadable` is not read again before it changes. Whose verdict `waits` is not asked for another one: what
    comes of it decides how to go on.
    """
    missing = [
        agent_id
        for agent_id, version in stored.items()
        if polled.get(agent_id) != version.row and unreadable.get(agent_id) != version.row
    ]
    put_off = frozenset(agent_id for agent_id in missing if waits(agent_id))
    return PollPlan(
        drop=frozenset(polled.keys() - stored.keys() - set(touched)),
        hold={agent_id: stored[agent_id].policies for agent_id in polled if agent_id in stored},
        adopt=tuple(agent_id for agent_id in missing if agent_id not in put_off),
        put_off=put_off,
    )


def adoption_spread_s(agents: int, most_s: float) -> float:
    """Over how many seconds so many agents are asked for the first time."""
    return min(most_s, agents / _ASKED_IN_A_SECOND)


def still_unreadable(
    before: Mapping[AgentId, RowVersion],
    stored: Mapping[AgentId, AgentVersion],
    wanted: Collection[AgentId],
    found: Collection[AgentId],
) -> dict[AgentId, RowVersion]:
    """What cannot be read, and in which version, after some were `wanted` and some of them `found`."""
    known = {**before, **{agent_id: stored[agent_id].row for agent_id in wanted if agent_id not in found}}
    return {agent_id: version for agent_id, version in known.items() if agent_id in stored}
