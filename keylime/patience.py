"""How long work may wait for what it needs: a caller's request for less time than work of our own.

Whoever begins a piece of work says how much it may wait; what waits, however deep, asks here for the rest.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

OWN_WORK_S = 10.0
CALLERS_S = 3.0


@dataclass(slots=True, eq=False)
class Patience:
    """The waiting of one piece of work; `in_sum` limits all waits together, else each begins afresh.

    `has_changed` says that something was already done for good when a wait is given up.
    """

    limit_s: float = OWN_WORK_S
    in_sum: bool = False
    has_changed: bool = False
    _spent_s: float = 0.0
    _deadline: float | None = None  # of the wait under way

    @property
    def left_s(self) -> float:
        """How many more seconds may be waited."""
        if self._deadline is not None:
            return max(0.0, self._deadline - time.monotonic())
        return max(0.0, self.limit_s - self._spent_s)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within the block; a block in another one belongs to the outer one's time."""
        if self._deadline is not None:
            yield
            return
        began = time.monotonic()
        self._deadline = began + self.left_s
        try:
            yield
        finally:
            self._deadline = None
            if self.in_sum:
                self._spent_s += time.monotonic() - began


def current() -> Patience:
    """That of the work that runs now."""
    found = _current.get()
    # Work of our own: transactions of different tasks are not one wait.
    return Patience() if found is None else found if found.in_sum else Patience(found.limit_s)


@contextmanager
def for_a_caller(limit_s: float = CALLERS_S) -> Iterator[None]:
    """The block answers a request: all its waits together take no longer than this."""
    with _having(Patience(limit_s, in_sum=True)):
        yield


@contextmanager
def at_most(limit_s: float) -> Iterator[None]:
    """Each wait in the block, and in tasks that begin there, takes no longer than this."""
    with _having(Patience(min(limit_s, current().left_s))):
        yield


@contextmanager
def for_long_work(limit_s: float) -> Iterator[None]:
    """The block may wait longer than usual."""
    with _having(Patience(limit_s)):
        yield


@contextmanager
def apart() -> Iterator[None]:
    """What is done for good in the block is no part of what was asked for."""
    waits = current()
    before = waits.has_changed
    try:
        yield
    finally:
        waits.has_changed = before


@contextmanager
def _having(patience: Patience) -> Iterator[None]:
    token = _current.set(patience)
    try:
        yield
    finally:
        _current.reset(token)


_current: ContextVar[Patience | None] = ContextVar("patience", default=None)
