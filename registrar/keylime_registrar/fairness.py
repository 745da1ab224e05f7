"""Who makes room when registrations without proof are too many: the fullest source, its oldest first. Pure.

A source is a path from the wide to the narrow: network, address, EK. Whoever has many addresses shares one
network, who has many keys shares one address, and one key under many ids is one source. So a flood displaces
itself: an attempt stays as long as its source holds no more than its share of the room.
"""

import heapq
from collections import deque
from collections.abc import Container, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Source: TypeAlias = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class PendingAttempt:
    """A registration that waits for its proof; later ones have higher ids. `size` is above zero."""

    attempt_id: int
    source: Source  # of the same length for all
    size: int


def surplus(attempts: Iterable[PendingAttempt], capacity: int) -> frozenset[int]:
    """The ids of those that must go, so that what is left is no larger than `capacity`.

    As if the fullest source gave up its oldest attempt, again and again. Among equally full ones, the source
    with the oldest attempt does.
    """
    ordered = sorted(attempts, key=lambda attempt: attempt.attempt_id)
    if sum(attempt.size for attempt in ordered) <= capacity:
        return frozenset()
    everybody = _gathered(ordered, 0)
    dropped: set[int] = set()
    while everybody.size > capacity:
        everybody.drop(dropped)
    return frozenset(dropped)


class _Group:
    """Attempts with the beginning of their sources in common; never empty while it is in a heap."""

    __slots__ = ("groups", "order", "size")

    def __init__(self) -> None:
        self.size = 0
        self.order: deque[PendingAttempt] = (
            deque()
        )  # oldest first; those that were dropped leave it when they come up
        self.groups: list[tuple[int, int, _Group]] = []  # a heap: fullest first, then the one with the oldest

    def oldest(self, dropped: Container[int]) -> PendingAttempt:
        while self.order[0].attempt_id in dropped:
            self.order.popleft()
        return self.order[0]

    def drop(self, dropped: set[int]) -> int:
        """Drops the oldest of the fullest source; its size."""
        if not self.groups:
            attempt = self.oldest(dropped)
            dropped.add(attempt.attempt_id)
            self.size -= attempt.size
            return attempt.size
        fullest = heapq.heappop(self.groups)[2]
        size = fullest.drop(dropped)
        self.size -= size
        if fullest.size > 0:
            heapq.heappush(self.groups, (-fullest.size, fullest.oldest(dropped).attempt_id, fullest))
        return size


def _gathered(ordered: Sequence[PendingAttempt], level: int) -> _Group:
    group = _Group()
    group.size = sum(attempt.size for attempt in ordered)
    group.order.extend(ordered)
    if level == len(ordered[0].source):
        return group
    parts: dict[Hashable, list[PendingAttempt]] = {}
    for attempt in ordered:
        parts.setdefault(attempt.source[level], []).append(attempt)
    for part in parts.values():
        child = _gathered(part, level + 1)
        group.groups.append((-child.size, part[0].attempt_id, child))
    heapq.heapify(group.groups)
    return group
