"""What happens in a year, and when: the same for the same seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

DAYS = 378  # past the end of certificates that live for a year
_CERTIFICATE_DAYS = 330  # by then each machine has renewed its own
_ENDING = range(336, 360)  # when those of services are due to be renewed, and have not ended yet
_SHARES = {"reboot": 8, "restart": 8, "measure": 3}  # one machine in so many, in each step


class Kind(Enum):
    """What may happen; the value is how it is shown, in front of the number of machines if there are any."""

    REBOOT = "rebooted"
    RESTART_AGENT = "agents restarted"
    RENEW = "certificates renewed"
    MEASURE = "lists grown"
    POLICY = "policy replaced"
    VERIFIER_TERM = "verifier restarted"
    VERIFIER_KILL = "verifier killed"
    WORKER_KILL = "worker killed"
    REGISTRAR_TERM = "registrar restarted"
    REGISTRAR_KILL = "registrar killed"
    CLOCK_BACK = "clock an hour back"
    SILENCE = "silent for two days"
    TAMPER = "tampered with"


PARTS = (
    Kind.VERIFIER_TERM,
    Kind.REGISTRAR_KILL,
    Kind.VERIFIER_KILL,
    Kind.WORKER_KILL,
    Kind.REGISTRAR_TERM,
)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens, to these machines where it happens to machines."""

    kind: Kind
    machines: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.machines)} {self.kind.value}" if self.machines else self.kind.value


@dataclass(frozen=True, slots=True)
class Step:
    """A day, and what happens on it."""

    number: int
    day: int
    events: tuple[Event, ...]


def plan_year(steps: int, machines: int, seed: int) -> tuple[Step, ...]:
    """The steps of a year. Raises ValueError when there are too few of them, or too few machines."""
    if steps < len(PARTS) - 1 or machines < 3:
        raise ValueError(f"a year has at least {len(PARTS) - 1} steps, and 3 machines live through it")
    random = Random(seed)  # noqa: S311 - nothing secret
    days = [round(number * DAYS / steps) for number in range(1, steps + 1)]
    if not any(day in _ENDING for day in days):  # nobody is meant to sleep through it
        days[-2] = _ENDING.start
    last_renewal = max(1, sum(day <= _CERTIFICATE_DAYS for day in days))
    renewals = [random.randint(1, last_renewal) for _ in range(machines)]
    silent, bad = random.sample(range(machines), 2)
    once = {
        max(1, steps // 4): Event(Kind.SILENCE, (silent,)),
        max(2, steps // 3): Event(Kind.CLOCK_BACK),
        max(3, steps // 2): Event(Kind.TAMPER, (bad,)),
    }
    planned = []
    for number, day in enumerate(days, 1):
        renewing = tuple(machine for machine, step in enumerate(renewals) if step == number)
        events = list(_usual_events(number, renewing, machines, random))
        random.shuffle(events)
        # At the end: what is silent, or bad, misses nothing that was meant for others.
        planned.append(Step(number, day, (*events, *([once[number]] if number in once else []))))
    return tuple(planned)


def _usual_events(number: int, renewing: Sequence[int], machines: int, random: Random) -> Iterator[Event]:
    def some(share: str) -> tuple[int, ...]:
        return tuple(sorted(random.sample(range(machines), max(1, machines // _SHARES[share]))))

    yield Event(Kind.REBOOT, some("reboot"))
    yield Event(Kind.RESTART_AGENT, some("restart"))
    yield Event(Kind.MEASURE, some("measure"))
    if renewing:
        yield Event(Kind.RENEW, tuple(renewing))
    if number % 3 == 1:
        yield Event(Kind.POLICY)
    yield Event(PARTS[(number - 1) % len(PARTS)])
