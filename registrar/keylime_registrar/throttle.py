"""How much work strangers may cause: CPU time, by where they come from and in sum. Time comes in as a value.

What a request costs is known when it has been dealt with, so it is admitted on credit and charged afterwards:
one that was dear delays the next ones from there. In sum, when all together cause too much, those wait who
had more than their share; who had less comes through at once, however many the others are.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Allowance:
    """Seconds of CPU. A registration with its activation costs two to three thousandths."""

    burst: float = 10.0  # of one address at once: a site behind it may restart thousands of agents
    rate: float = 0.2  # of one address, a second, after that
    total: float = 0.8  # of all, a second
    window_s: float = 10.0  # over which the share of each is looked at


def fair_share(amounts: Collection[float], room: float) -> float:
    """The most that each may have, so that all together have no more than `room`.

    Who wants less leaves the rest to the others. Infinite when there is room for all.
    """
    left, count = room, len(amounts)
    for amount in sorted(amounts):
        if amount * count > left:
            return left / count
        left -= amount
        count -= 1
    return math.inf


@dataclass(slots=True)
class _Use:
    """What somebody had lately: it fades away, by the factor e in each window."""

    amount: float
    at: float

    def now(self, now: float, window_s: float) -> float:
        self.amount *= math.exp(min(0.0, self.at - now) / window_s)
        self.at = now
        return self.amount


@dataclass(slots=True)
class _Address:
    used: _Use
    debt: float = 0.0  # of the burst
    at: float = 0.0

    def debt_now(self, now: float, rate: float) -> float:
        self.debt = max(0.0, self.debt - max(0.0, now - self.at) * rate)
        self.at = now
        return self.debt


@dataclass(slots=True)
class _Network:
    used: _Use
    addresses: dict[str, _Address] = field(default_factory=dict)


class Throttle:
    """Who may cause work now. Prefixes are those of an address, narrowest first.

    Remembers about `capacity` addresses; the network unseen for the longest time is forgotten first.
    """

    def __init__(self, allowance: Allowance, *, capacity: int = 10_000) -> None:
        self._allowance = allowance
        self._capacity = capacity
        self._networks: dict[str, _Network] = {}
        self._known = 0
        self._all = _Use(0.0, 0.0)
        self._share = (-math.inf, math.inf)  # when it was worked out, and of each network

    def wait_s(self, prefixes: tuple[str, ...], now: float) -> float:
        """0 when this source may ask for more; else the seconds until it may.

        `now` is in seconds of any clock that never runs back.
        """
        network = self._networks.get(prefixes[-1])
        address = None if network is None else network.addresses.get(prefixes[0])
        if network is None or address is None:
            return 0.0
        allowance = self._allowance
        if (over := address.debt_now(now, allowance.rate) - allowance.burst) > 0:
            return over / allowance.rate
        return self._wait_for_share_s(network, address, now)

    def charge(self, prefixes: tuple[str, ...], cost_s: float, now: float) -> None:
        """Notes that a request from there took so much CPU time."""
        network = self._networks.pop(prefixes[-1], None)
        if network is None:
            network = _Network(_Use(0.0, now))
        self._networks[prefixes[-1]] = network
        address = network.addresses.get(prefixes[0])
        if address is None:
            address = network.addresses[prefixes[0]] = _Address(_Use(0.0, now), at=now)
            self._known += 1
        for used in (self._all, network.used, address.used):
            used.amount = used.now(now, self._allowance.window_s) + cost_s
        address.debt = address.debt_now(now, self._allowance.rate) + cost_s
        while self._known > self._capacity and len(self._networks) > 1:
            forgotten = self._networks.pop(next(iter(self._networks)))
            self._known -= len(forgotten.addresses)

    def _wait_for_share_s(self, network: _Network, address: _Address, now: float) -> float:
        window_s = self._allowance.window_s
        room = self._allowance.total * window_s
        if self._all.now(now, window_s) <= room:
            return 0.0
        share = self._share_of_networks(now, room)
        if network.used.now(now, window_s) <= share:
            return 0.0
        neighbours = [each.used.now(now, window_s) for each in network.addresses.values()]
        share = fair_share(neighbours, share)
        used = address.used.now(now, window_s)
        return 0.0 if used <= share else window_s * math.log(used / share)

    def _share_of_networks(self, now: float, room: float) -> float:
        worked_out_at, share = self._share
        if not 0 <= now - worked_out_at < 1:
            window_s = self._allowance.window_s
            share = fair_share([each.used.now(now, window_s) for each in self._networks.values()], room)
            self._share = (now, share)
        return share
