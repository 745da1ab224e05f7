"""Several runtime policies on the command line: names, each with the time at which it ends, if it does.

    --runtime-policy-name old@+2h --runtime-policy-name new

Pure: the time comes in as a value.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

_AGE = re.compile(r"\+([0-9]{1,6})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
FORMS = "+30m, +12h, +7d, 2030-12-31 or 2030-12-31T18:00Z"


class TimedName(NamedTuple):
    """The name of one of several policies, and the epoch second at which it ends."""

    name: str
    until: int | None = None


def parse_parts(names: Sequence[str], now: float) -> tuple[TimedName, ...]:
    """The policies that `names` mean, of which there are several. Raises ValueError with what is wrong.

    What follows the last @ of a name and is no time belongs to the name.
    """
    parts = tuple(_part(name, now) for name in names)
    for part in parts:
        if part.until is not None and part.until <= now:
            raise ValueError(f"{part.name} would have ended already")
    if len({part.name for part in parts}) < len(parts):
        raise ValueError("the same policy is named twice")
    if all(part.until is not None for part in parts):
        raise ValueError("one of several policies must not end, or nothing would be judged when all have")
    return parts


def lasting_name(parts: Sequence[TimedName]) -> str:
    """The one that verifiers of before are told: the last that does not end."""
    return [part.name for part in parts if part.until is None][-1]


def _part(text: str, now: float) -> TimedName:
    name, at, end = text.rpartition("@")
    until = _time(end, now) if at and name else None
    return TimedName(text) if until is None else TimedName(name, until)


def _time(text: str, now: float) -> int | None:
    """Epoch seconds; None for what is no time."""
    match = _AGE.fullmatch(text)
    if match is not None:
        return int(now) + int(match[1]) * _SECONDS[match[2]]
    if not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
