"""Which refusals of registrations get a line in the audit, so that strangers do not fill it. Pure.

The log has each of them, and metrics count them all.
"""

from dataclasses import dataclass

HOUR_S = 3600.0
MOST = 100  # lines in an hour
MOST_OF_NETWORK = 20
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class RefusedRegistration:
    """What was refused to whom: `result` is a word of the metrics, `network` where it came from."""

    agent_id: str
    network: str
    result: str


@dataclass(frozen=True, slots=True)
class DueLine:
    """A line that is due: how often the same was refused since its last one, and what had no line at all."""

    repeated: int
    left_off: int


class ToldRefusals:
    """The same refusal is told once an hour, and no more than `MOST` of them."""

    def __init__(self) -> None:
        self._told: dict[RefusedRegistration, tuple[float, int]] = {}  # when, and how often since then
        self._hour_began: float | None = None
        self._by_network: dict[str, int] = {}
        self._left_off = 0

    def line(self, refusal: RefusedRegistration, now: float) -> DueLine | None:
        """The line for what is refused `now`, in seconds of a clock that never goes back; None for none."""
        told_at, repeated = self._told.get(refusal, (None, 0))
        if told_at is not None and now - told_at < HOUR_S:
            self._told[refusal] = told_at, repeated + 1
            return None
        if self._hour_began is None or now - self._hour_began >= HOUR_S:
            self._hour_began = now
            self._by_network.clear()
        of_network = self._by_network.get(refusal.network, 0)
        if of_network >= MOST_OF_NETWORK or sum(self._by_network.values()) >= MOST:
            self._left_off += 1
            return None
        self._by_network[refusal.network] = of_network + 1
        self._told.pop(refusal, None)  # the oldest stands first
        self._told[refusal] = now, 0
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        line, self._left_off = DueLine(repeated, self._left_off), 0
        return line
