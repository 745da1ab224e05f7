"""When an agent is asked next: drifting apart, in ticks, and at a rate those that were given up. Pure."""

# Of the interval: agents that are due at almost the same time are asked together. To wake up for each of them
# costs more CPU, most of it for caches that have gone cold.
_TICK = 0.01
_JITTER = 0.05  # of the delay: agents added together drift apart
# Questions in a second to agents that were given up, of all together: up to 1500 are asked every 15 s,
# of 10,000 each every 100 s. A question that nobody answers is a TCP connection and no more.
_SILENT_RATE = 100.0


def tick_s(interval_s: float) -> float:
    """The grid that due times fall on, for agents that are asked every `interval_s`."""
    return max(_TICK * interval_s, 1e-6)


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
