"""Which genuine revocation messages an agent acts upon: each event once, and none about a former self.

Messages may come again at any time: delivery is "at least once", the ZeroMQ broker repeats what is recent to
whoever subscribes, and anybody who has seen one can send it again.
"""

import enum
from dataclasses import dataclass

from keylime.errors import MalformedMessage
from keylime.messages.revocation import RevocationMessage
from keylime.revocation.message import RevocationKind, certificate_serial
from keylime.revocation.publication import REPLAY_S

_CLOCKS_APART_S = 60  # of the hosts of verifier and CA
_AHEAD_S = 600.0  # the verifier's clock may be, of ours
_DELIVERY_SLACK_S = 60.0  # between the broker's clock of a message and ours: queues, reconnections


class Decision(enum.Enum):
    """What becomes of a message; the value is for the log."""

    ACT = "is acted upon"
    HANDLED = "was handled before"
    OLDER = "is older than the enrolment of this agent"
    OVERTAKEN = "is about what is over: a later message about that agent came before"
    FORMER = "is about the certificate of a former payload of this agent, not about the one it has now"


@dataclass(frozen=True, slots=True)
class Incarnation:
    """Who the agent is now: `serial` is that of its certificate in the payload, None without one.

    `boot` names the running boot of the machine (16 bytes); `enrolled_at` (seconds since the epoch) is known
    of agents with a certificate of ours.
    """

    agent_id: str
    serial: int | None
    boot: bytes
    enrolled_at: int | None = None


@dataclass(frozen=True, slots=True)
class LastWord:
    """The times of the newest messages about one agent that were genuine: a warning, and that it is over."""

    revoked_at: int = 0
    cleared_at: int = 0

    def after(self, message: RevocationMessage) -> "LastWord":
        """With `message` taken into account."""
        when = message.event_timestamp or 0
        if message.type == RevocationKind.CLEARED:
            return LastWord(self.revoked_at, max(self.cleared_at, when))
        return LastWord(max(self.revoked_at, when), self.cleared_at)

    def overtakes(self, message: RevocationMessage, received_at: float) -> bool:
        """Whether a later message said the opposite. Within one second the order of arrival counts.

        One from the future was said while the verifier's clock was ahead: who believed it would take nothing
        that is said about the agent from now until then.
        """
        if message.event_timestamp is None:
            return False
        opposite = self.revoked_at if message.type == RevocationKind.CLEARED else self.cleared_at
        return message.event_timestamp < opposite <= received_at + _AHEAD_S


@dataclass(frozen=True, slots=True)
class Handled:
    """A message that was acted upon: first at `first_at` (seconds since the epoch), last in `boot`."""

    first_at: int
    boot: bytes


NOTHING_SAID = LastWord()


def decide(
    message: RevocationMessage,
    before: Handled | None,
    now: Incarnation,
    received_at: float,
    last_word: LastWord = NOTHING_SAID,
) -> Decision:
    """Whether to act on `message`, which came at `received_at` (seconds since the epoch).

    About this agent: once for ever, and only if it names the certificate that the agent has now, for a new
    enrolment after a rejection comes with a new one. About another: once in a boot, because what actions did
    (a packet filter's rule) ends with the boot; but after a reboot only while the broker repeats the message,
    so that an old one, recorded by whomever, does nothing.

    What happened before this agent was enrolled does not concern it: the machine may be well again. Nor does
    what a later message about the same agent has overtaken.
    """
    happened_at = message.event_timestamp
    if happened_at is not None and happened_at < (now.enrolled_at or 0) - _CLOCKS_APART_S:
        return Decision.OLDER
    if last_word.overtakes(message, received_at):
        return Decision.OVERTAKEN
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
