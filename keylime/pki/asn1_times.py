"""Times in certificates as BER allows them: without seconds, with fractions of one, with an offset. Pure."""

import re
from datetime import UTC, datetime, timedelta

UTC_TIME, GENERALIZED_TIME = 0x17, 0x18

_REST = rb"(?P<rest>\d{8})(?P<seconds>\d{2}([.,]\d+)?)?(Z|(?P<offset>[+-]\d{4}))?"
_TIMES = {
    UTC_TIME: re.compile(rb"(?P<year>\d{2})" + _REST),
    GENERALIZED_TIME: re.compile(rb"(?P<year>\d{4})" + _REST),
}
_CENTURY_TURNS = 50  # from this year on, two digits mean the last century (RFC 5280, 4.1.2.5.1)


def strict_time(tag: int, content: bytes) -> tuple[int, bytes]:
    """The tag and content by which DER writes the time in UTC; what is no time comes back as it is."""
    found = _TIMES[tag].fullmatch(content)
    if found is None:
        return tag, content
    digits = found["year"] + found["rest"] + (found["seconds"] or b"00")[:2]
    if content == digits + b"Z":
        return tag, content
    if tag == UTC_TIME:
        digits = (b"19" if int(found["year"]) >= _CENTURY_TURNS else b"20") + digits
    try:
        time = datetime.strptime(digits.decode(), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        time = _in_utc(time, (found["offset"] or b"+0000").decode())
    except ValueError:
        return tag, content
    return GENERALIZED_TIME, f"{time:%Y%m%d%H%M%SZ}".rjust(15, "0").encode()


def _in_utc(time: datetime, offset: str) -> datetime:
    """`time` less its offset; as it is at the ends of all time."""
    hours, minutes = int(offset[:3]), int(offset[0] + offset[3:])
    if abs(hours) >= 24 or abs(minutes) >= 60:
        raise ValueError(f"no offset from UTC: {offset}")
    try:
        return time - timedelta(hours=hours, minutes=minutes)
    except OverflowError:
        return time
