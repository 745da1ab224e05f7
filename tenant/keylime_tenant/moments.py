"""Times in the past on the command line. Pure: the time comes in as a value."""

import re
from datetime import UTC, datetime

_AGE = re.compile(r"([0-9]{1,6})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
FORMS = "30m, 12h, 7d, 2030-12-31 or 2030-12-31T18:00Z"


def parse_since(text: str, now: float) -> int:
    """The epoch second from which on something is wanted. Raises ValueError."""
    if (age := _AGE.fullmatch(text)) is not None:
        return max(0, int(now) - int(age[1]) * _SECONDS[age[2]])
    if not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ValueError(f"{text!r} is no time: {FORMS}")
    moment = datetime.fromisoformat(text)
    return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))
