"""When an agent is asked next: drifting apart, in ticks, and at a rate those that were given up. Pure."""

import math

_JITTER = 0.05  # of the delay: agents added together drift apart
# Agents that are due at almost the same time are asked together: to wake up for each of them costs more CPU,
# most of it for caches that have gone cold. So many at most, as others wait for the loop meanwhile; and no
# agent is moved in time by more than what it drifts anyway.
_TOGETHER = 16
_WIDEST_TICK = 0.05  # of the interval
# Questions in a second to agents that were given up, of all together: up to 1500 are asked every 15 s,
# of 10,000 each every 100 s. A question that nobody answers is a TCP connection and no more.
_SILENT_RATE = 100.0


def tick_s(interval_s: float, agents: int) -> float:
    """The grid that due times of so many agents fall on, which are asked every `interval_s`.

    A finer grid has all times of a wider one: as agents come and go, those of either are asked together.
    """
    halvings = max(math.ceil(math.log2(max(agents * _WIDEST_TICK / _TOGETHER, 1.0))), 0)
    return max(_WIDEST_TICK * interval_s / (1 << halvings), 1e-6)


def due_at(now: float, delay_s: float, tick_s: float, chance: float) -> float:
    """About `delay_s` after `now`, by `chance` from -1 to 1 somewhat earlier or later."""
    delay_s *= 1 + _JITTER * chance
    at = now + delay_s
    return round(at / tick_s) * tick_s if delay_s > tick_s else at


def given_up_due_at(at: float, last_at: float, agents: int) -> float:
    """The same for one that was given up, where the last question to such a one is due at `last_at`.

    Turns of agents that were dropped since are not waited for: of so many `agents`, what is adopted again and
    again, because shards go to and fro, would be asked ever later.
    """
    return min(max(at, last_at + 1 / _SILENT_RATE), at + agents / _SILENT_RATE)
