"""The rules of delivering: what waits for a target, when it is tried again, and when that is over. Pure.

Queues and times are values here; `notifier` has the connections, the tasks and the clock.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from keylime.identifiers import AgentId
from keylime_verifier.agents.deliveries import (
    AGENT,
    DELIVERED,
    FAILED,
    GONE,
    WAITING,
    ZEROMQ,
    Channel,
    DeliveryState,
)
from keylime_verifier.agents.records import Delivery
from keylime_verifier.agents.shards import shard_of

AGENT_WINDOW = 16
"""How many revocations an agent is told over one connection; it never has more rows that are pending."""
NOBODY = "the agent was deleted"
"""Why an attempt at an agent that is gone fails."""

_FEWEST_ATTEMPTS = 3  # also of what became too old while the verifier was not running
_LONGEST_DELAY_S = 60.0
_LOOK_AGAIN_S = 30.0
_REST = 5.0  # times as long as a look took: when a fleet falls at once, there is news all the time
_LONG_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often: seconds. `retention_s` bounds retries, `history_s` what is kept."""

    retry_interval_s: float
    attempt_limit_s: float
    retention_s: float
    history_s: float

    def delay_s(self, failures: int) -> float:
        """The pause after that many attempts in vain: longer each time, up to a minute."""
        return min(self.retry_interval_s * 2.0 ** min(failures - 1, 16), _LONGEST_DELAY_S)

    def is_over(self, age_s: float, attempts: int) -> bool:
        """Whether to give up."""
        return age_s >= self.retention_s and attempts >= _FEWEST_ATTEMPTS


@dataclass(slots=True, eq=False)
class TargetQueue:
    """What waits for one target, by revocation id, oldest first."""

    channel: Channel
    target: str
    waiting: dict[str, Delivery] = field(default_factory=dict)
    reached: int | None = None  # the number of the last one that came from the backlog
    is_silent: bool = False  # since the last attempt

    @property
    def room(self) -> int:
        """For how many more of an agent's backlog."""
        return AGENT_WINDOW - len(self.waiting)

    def holds(self, delivery: Delivery) -> bool:
        """Whether it still waits here: it may have been withdrawn meanwhile."""
        return delivery.revocation.revocation_id in self.waiting

    def has_use_for(self, delivery: Delivery) -> bool:
        """Whether it is new, and it makes sense to try."""
        return not self.holds(delivery) and not (self.is_silent and delivery.number is not None)

    def add(self, delivery: Delivery) -> None:
        """Puts a delivery at the end."""
        self.waiting[delivery.revocation.revocation_id] = delivery
        self.reached = self.reached if delivery.number is None else delivery.number

    def withdraw(self, is_meant: Callable[[Delivery], bool]) -> bool:
        """Takes out what is somebody else's to deliver; whether there was any."""
        meant = [name for name, delivery in self.waiting.items() if is_meant(delivery)]
        for name in meant:
            del self.waiting[name]
        if meant:
            self.reached = None
        return bool(meant)

    def conclude(self, tried: Delivery, state: DeliveryState) -> None:
        """After an attempt: what is over leaves; what was withdrawn meanwhile does not come back."""
        if state not in WAITING:
            self.waiting.pop(tried.revocation.revocation_id, None)
        elif self.holds(tried):
            self.waiting[tried.revocation.revocation_id] = tried

    def failures_after(self, batch: Sequence[Delivery], failures: int) -> int:
        """How many rounds in a row were in vain, after one that tried `batch`."""
        return failures + 1 if all(self.holds(delivery) for delivery in batch) else 0


def state_after(
    tried: Delivery,
    error: str | None,
    *,
    now: int,
    waiting: DeliveryState,
    is_enabled: bool,
    retry_policy: RetryPolicy,
) -> DeliveryState:
    """How a delivery stands after an attempt that ended with `error`; `waiting` if it is tried again.

    `is_enabled` says whether its channel is one that the operator wants.
    """
    if error is None:
        return DELIVERED
    if error == NOBODY:
        return GONE
    if not is_enabled or retry_policy.is_over(now - tried.revocation.created_at, tried.attempts):
        return FAILED
    return waiting


def goes_with(delivery: Delivery, shards: Collection[int]) -> bool:
    """Whether a delivery is another verifier's to make when `shards` are."""
    if delivery.channel == ZEROMQ:
        return False
    about = delivery.target if delivery.channel == AGENT else delivery.revocation.agent_id
    return shard_of(AgentId(about)) in shards


def is_no_longer_ours(pending: Iterable[Delivery]) -> Callable[[Delivery], bool]:
    """Which deliveries that wait here are not among those that the outbox has for us now."""
    pending = tuple(pending)
    ours = {delivery.key for delivery in pending}
    agents = {delivery.target for delivery in pending if delivery.channel == AGENT}

    def is_lost(one: Delivery) -> bool:
        # Of an agent's backlog only a part is read; it is ours as a whole or not at all.
        return one.target not in agents if one.channel == AGENT else one.key not in ours

    return is_lost


def is_to_be_added(
    delivery: Delivery, queue: TargetQueue | None, ended: Collection[tuple[str, str, str]]
) -> bool:
    """Whether what is pending by the outbox is put into its target's `queue`, or into a new one.

    `ended` are the keys of what ended and is not written down yet: it may still be in the outbox's answer.
    """
    return delivery.key not in ended and (queue is None or queue.has_use_for(delivery))


@dataclass(frozen=True, slots=True)
class Looks:
    """When the outbox is read: at news, with rests between that grow with its length; else now and then."""

    next_at: float = 0.0
    rest_until: float = 0.0

    def wait_s(self, now: float, *, has_news: bool) -> float:
        """How many seconds it is until the next look; none when it is due."""
        return max(0.0, (self.rest_until if has_news else self.next_at) - now)

    def after(self, began: float, ended: float) -> "Looks":
        """When to look next, after a look that took so long."""
        took_s = ended - began
        rest_until = ended + _REST * took_s if took_s > _LONG_LOOK_S else self.rest_until
        return Looks(ended + _LOOK_AGAIN_S, rest_until)
