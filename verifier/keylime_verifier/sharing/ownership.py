"""Who polls which shards. Decisions only; `membership` carries them out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from keylime_verifier.agents.shards import SHARDS, MemberId


@dataclass(frozen=True, slots=True)
class Moves:
    """What a member does next: shards that it takes, and those that it gives up."""

    take: frozenset[int] = frozenset()
    release: frozenset[int] = frozenset()


def fair_share(me: MemberId, alive: Collection[MemberId]) -> int:
    """How many shards each member is to have: as many as any other, or one more for the first ones."""
    members = sorted({me, *alive})
    each, left_over = divmod(SHARDS, len(members))
    return each + (members.index(me) < left_over)


def next_moves(
    me: MemberId,
    alive: Collection[MemberId],
    owners: Mapping[int, MemberId | None],
    at_work: Collection[MemberId] | None = None,
) -> Moves:
    """What `me` does, given the members that are alive and the owner of every shard.

    Nothing is taken from a member that is alive, and what is given up is surplus: when all members act on
    this, in any order, each ends with its fair share. Of those that must be taken for alive, only some may be
    known to be `at_work` (None: all): nothing is given up for others, who may never take it.
    """
    known = set(alive if at_work is None else at_work)
    most = fair_share(me, known)
    mine = sorted(shard for shard, owner in owners.items() if owner == me)
    if len(mine) > most:
        return Moves(release=frozenset(mine[most:]))
    others = set(alive) - {me}
    holders = {owner for owner in owners.values() if owner is not None and owner in others}
    share = min(most, fair_share(me, known | holders))
    free = sorted(shard for shard, owner in owners.items() if owner != me and owner not in others)
    return Moves(take=frozenset(free[: max(0, share - len(mine))]))
