"""The time that policies are dated with."""

import datetime


def local_time() -> datetime.datetime:
    """Now, with the local time zone."""
    return datetime.datetime.now().astimezone()


def timestamp_of(now: datetime.datetime) -> str:
    """`now` in the form that policies have by convention."""
    return now.strftime("%Y-%m-%d %H:%M:%S.%f")
