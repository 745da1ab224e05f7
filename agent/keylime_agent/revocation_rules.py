"""Which genuine revocation messages an agent acts upon: each event once, and none about a former self.

Messages may come again at any time: delivery is "at least once", the ZeroMQ broker repeats what is recent to
whoever subscribes, and anybody who has seen one can send it again.
"""

import enum
from dataclasses import dataclass

from keylime.errors import MalformedMessage
from keylime.messages.revocation import RevocationMessage
from keylime.revocation.channel import REPLAY_S
from keylime.revocation.message import certificate_serial

_DELIVERY_SLACK_S = 60.0  # between the broker's clock of a message and ours: queues, reconnections


class Decision(enum.Enum):
    """What becomes of a message; the value is for the log."""

    ACT = "is acted upon"
    HANDLED = "was handled before"
    FORMER = "is about the certificate of a former payload of this agent, not about the one it has now"


@dataclass(frozen=True, slots=True)
class Incarnation:
    """Who the agent is now: `serial` is that of its certificate in the payload, None without one.

    `boot` names the running boot of the machine (16 bytes).
    """

    agent_id: str
    serial: int | None
    boot: bytes


@dataclass(frozen=True, slots=True)
class Handled:
    """A message that was acted upon: first at `first_at` (seconds since the epoch), last in `boot`."""

    first_at: int
    boot: bytes


def decide(
    message: RevocationMessage, before: Handled | None, now: Incarnation, received_at: float
) -> Decision:
    """Whether to act on `message`, which came at `received_at` (seconds since the epoch).

    About this agent: once for ever, and only if it names the certificate that the agent has now, for a new
    enrolment after a rejection comes with a new one. About another: once in a boot, because what actions did
    (a packet filter's rule) ends with the boot; but after a reboot only while the broker repeats the message,
    so that an old one, recorded by whomever, does nothing.
    """
    is_own = message.agent_id == now.agent_id
    if is_own and _names_another_certificate(message, now.serial):
        return Decision.FORMER
    if before is None:
        return Decision.ACT
    is_lost = not is_own and before.boot != now.boot
    if is_lost and 0 <= received_at - before.first_at <= REPLAY_S + _DELIVERY_SLACK_S:
        return Decision.ACT
    return Decision.HANDLED


def _names_another_certificate(message: RevocationMessage, own: int | None) -> bool:
    try:
        named = certificate_serial(message.meta_data)
    except MalformedMessage:
        return False
    return named is not None and own is not None and named != own
