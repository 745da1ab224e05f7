"""What a MariaDB server says is wrong, by the numbers of its errors. Does not load its driver."""

import sys

# The whole transaction was undone because others were in its way; the next attempt may come through.
_AGAIN = frozenset({1020, 1205, 1213})
# Answers to a COMMIT which say that nothing was committed: besides those, a server that can be read only.
_REFUSED = _AGAIN | {1290, 1792, 1836}
PACKET_TOO_LARGE = 1153
DENIED = 1227


def number_of(error: BaseException | None) -> int | None:
    """The number of a driver's error; None for errors that are not of this driver, or have none."""
    driver = sys.modules.get("pymysql")
    if driver is None or not isinstance(error, driver.MySQLError) or not error.args:
        return None
    number = error.args[0]
    return number if isinstance(number, int) else None


def is_worth_repeating(error: BaseException | None) -> bool:
    """Whether the same transaction, from its beginning, may come through: a deadlock, or a lock for long."""
    return number_of(error) in _AGAIN


def says_nothing_was_committed(error: BaseException | None) -> bool:
    """Whether this answer to a COMMIT leaves no doubt."""
    return number_of(error) in _REFUSED
