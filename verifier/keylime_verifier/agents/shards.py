"""Shards: every agent falls into one by its id, and the verifiers of a database divide them."""

import hashlib
from dataclasses import dataclass
from typing import NewType

from keylime.identifiers import AgentId
from keylime.messages.verifiers import SHARDS

__all__ = ["SHARDS", "MemberId", "ShardClaim", "VerifierId", "shard_of"]

MemberId = NewType("MemberId", str)
"""32 hexadecimal digits that name one run of one verifier process."""

VerifierId = NewType("VerifierId", str)
"""The name (`[verifier] uuid`) that verifiers have together when they divide agents among them."""


@dataclass(frozen=True, slots=True)
class ShardClaim:
    """Who owned a shard, and in which epoch: every change of owner begins a new one. Nobody: None."""

    owner: MemberId | None = None
    epoch: int = 0


def shard_of(agent_id: AgentId) -> int:
    """The shard of an agent, 0 to 255. Stored with the agent: it can never be computed in another way."""
    return hashlib.sha256(agent_id.encode()).digest()[0]
