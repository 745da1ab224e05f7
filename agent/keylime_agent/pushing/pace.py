"""When an agent that attests by itself does so next. Pure.

What a verifier asks for is kept to within bounds; what fails is repeated at growing intervals, for ever.
Chance spreads a fleet, so that machines that failed together do not come back together.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

SHORTEST_S = 1.0
"""Between two attestations, or two attempts, whatever a verifier says."""
LONGEST_S = 3600.0
"""For which an agent is silent because a verifier said so."""

_MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Pacing:
    """The agent's own interval, and the first and the longest pause after failures, in seconds."""

    interval_s: float
    initial_s: float
    max_s: float

    def regular(self, asked_s: float | None, spread: float) -> float:
        """The pause until the next attestation, if a verifier asked for one after `asked_s` seconds.

        Never earlier than asked: that would be refused. `spread` is from 0 to 1, and up to a tenth.
        """
        wanted = self.interval_s if asked_s is None else asked_s
        return min(max(wanted, SHORTEST_S), max(LONGEST_S, self.interval_s)) * (1 + spread / 10)

    def after_failures(self, failures: int, usual_s: float | None, spread: float) -> float:
        """The pause after `failures` (1, 2, ...) in a row, of an agent that came every `usual_s` seconds.

        It begins with what the verifier is used to, doubles, and is between half of it and the whole.
        """
        first = self.initial_s if usual_s is None else min(self.initial_s, usual_s)
        pause = min(max(first, SHORTEST_S) * 2.0 ** min(max(failures - 1, 0), 30), self.max_s)
        return max(pause * (1 + spread) / 2, SHORTEST_S)


def retry_after(value: str | None, now: datetime) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110, 10.2.3); None if there is none to be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return max(0.0, (moment - now).total_seconds())
