"""Who polls which agents: agents fall into shards, and the verifiers of a database divide the shards.

Decisions only; `membership` carries them out.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from keylime.identifiers import AgentId

SHARDS = 256

MemberId = str
"""32 hexadecimal digits that name one run of one verifier process."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who owned a shard, and in which epoch: every change of owner begins a new one. Nobody: None."""

    owner: MemberId | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Moves:
    """What a member does next: shards that it takes, and those that it gives up."""

    take: frozenset[int] = frozenset()
    release: frozenset[int] = frozenset()


def shard_of(agent_id: AgentId) -> int:
    """The shard of an agent, 0 to 255. Stored with the agent: it can never be computed in another way."""
    return hashlib.sha256(agent_id.encode()).digest()[0]


def fair_share(me: MemberId, alive: Collection[MemberId]) -> int:
    """How many shards each member is to have: as many as any other, or one more for the first ones."""
    members = sorted({me, *alive})
    each, left_over = divmod(SHARDS, len(members))
    return each + (members.index(me) < left_over)


def next_moves(me: MemberId, alive: Collection[MemberId], owners: Mapping[int, MemberId | None]) -> Moves:
    """What `me` does, given the members that are alive and the owner of every shard.

    Nothing is taken from a member that is alive, and what is given up is surplus: when all members act on
    this, in any order, each ends with its fair share.
    """
    share = fair_share(me, alive)
    mine = sorted(shard for shard, owner in owners.items() if owner == me)
    if len(mine) > share:
        return Moves(release=frozenset(mine[share:]))
    others = set(alive) - {me}
    free = sorted(shard for shard, owner in owners.items() if owner != me and owner not in others)
    return Moves(take=frozenset(free[: share - len(mine)]))
