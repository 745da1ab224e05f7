"""What happened to verifiers and machines, as somebody saw it who knows the truth of every machine.

All times are of one monotonic clock, that of the test. A `run` is one life of one verifier process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Truth:
    """Since when a machine has been bad, and since when it has answered well again; None: never."""

    bad_since: float | None = None
    good_again: float | None = None
    watched_since: float = 0.0  # it passed


@dataclass(frozen=True, slots=True)
class Answered:
    """A machine answered a challenge."""

    at: float
    agent_id: str
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """A verifier said in its log that a machine is rejected; the line was not there at `not_before` yet."""

    not_before: float
    at: float
    run: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A verifier said in its log that a pass does not count: others have taken the machine over."""

    at: float
    run: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What an administrator saw. `viewer` is one process behind one connection; `count` is of passes."""

    asked_at: float
    at: float
    run: str
    viewer: str
    agent_id: str
    state: int
    status: str
    count: int


@dataclass(frozen=True, slots=True)
class Told:
    """Somebody heard that a machine is revoked: `whom` is the webhook, or a machine."""

    whom: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class Written:
    """The database took something about a machine. Who wrote it is not known of SQLite."""

    agent_id: str
    incarnation: str
    state: int
    count: int
    writer: str | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """Something went wrong for a time.

    While it `blinds`, verifiers cannot be expected to do anything; between the times of `keeps_verdicts` the
    database cannot have taken one.
    """

    kind: str
    began: float
    ended: float
    blinds: bool = False
    keeps_verdicts: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Starved:
    """For `for_s` of this time a verifier, or the test, was ready to run and others had the processors."""

    began: float
    ended: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Loss:
    """The database forgot what it took last: a standby was promoted, or a backup restored."""

    forgets_since: float
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Run:
    """One life of a verifier process. `said` are the lines of its log that nobody should ever read."""

    name: str
    began: float
    ended: float | None = None  # None: it lives on
    status: int | None = None
    was_asked_to_end: bool = False
    workers: int = 1
    said: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """How the database has a machine at the end, and how many revocations of it."""

    state: int
    revocations: int


@dataclass(frozen=True, slots=True)
class History:
    """Everything, each kind in its order."""

    ended: float
    truths: Mapping[str, Truth]
    rows: Mapping[str, Row]
    answered: tuple[Answered, ...] = ()
    judged: tuple[Judged, ...] = ()
    refused: tuple[Refused, ...] = ()
    shown: tuple[Shown, ...] = ()
    told: tuple[Told, ...] = ()
    written: tuple[Written, ...] = ()
    faults: tuple[Fault, ...] = ()
    starved: tuple[Starved, ...] = ()
    losses: tuple[Loss, ...] = ()
    runs: tuple[Run, ...] = ()
    listeners: frozenset[str] = field(default_factory=frozenset)
    """Who must hear of each revocation: the webhook, and machines as soon as they are watched."""
