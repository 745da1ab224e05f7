"""Over which channel a delivery goes, and how it stands. The values are on the wire and in databases."""

from dataclasses import dataclass
from enum import StrEnum

from keylime.identifiers import AgentId


class DeliveryState(StrEnum):
    """How a delivery stands. An agent that was deleted has no rows, but for what was under way: gone."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    GONE = "gone"  # there was nobody to tell
    WRONG_KEY = "wrong_key"  # as pending, but who answered the last attempt did not hold the agent's key


class Channel(StrEnum):
    """How a revocation gets to a target."""

    AGENT = "agent"
    ZEROMQ = "zeromq"
    WEBHOOK = "webhook"


PENDING, DELIVERED, FAILED, GONE, WRONG_KEY = DeliveryState
WAITING = (PENDING, WRONG_KEY)
"""The states of deliveries that are still to be made."""
AGENT, ZEROMQ, WEBHOOK = Channel


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries are meant: those of revocations about `agent_id`, those in `state`; None is all."""

    agent_id: AgentId | None = None
    state: DeliveryState | None = None
