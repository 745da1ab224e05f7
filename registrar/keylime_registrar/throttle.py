"""How many registrations one address may send: a token bucket for each. The time comes in as a value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class Throttle:
    """Admits `burst` calls at once and `rate` per second after that, for each address.

    Remembers at most `capacity` addresses; the one unseen for the longest time is forgotten first.
    """

    def __init__(self, *, rate: float, burst: int, capacity: int = 10_000) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._capacity = capacity
        self._buckets: dict[str, _Bucket] = {}

    def wait_s(self, address: str, now: float) -> float:
        """0 when `address` may do it once more, which then counts; else the seconds until it may.

        `now` is in seconds of any clock that never runs back.
        """
        bucket = self._buckets.pop(address, _Bucket(self._burst, now))
        tokens = min(self._burst, bucket.tokens + (now - bucket.filled_at) * self._rate)
        admitted = tokens >= 1
        self._buckets[address] = _Bucket(tokens - 1 if admitted else tokens, now)
        if len(self._buckets) > self._capacity:
            del self._buckets[next(iter(self._buckets))]
        return 0.0 if admitted else (1 - tokens) / self._rate
