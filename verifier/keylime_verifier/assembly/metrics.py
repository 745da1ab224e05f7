"""What a verifier measures: its work as it is done, and the fleet and the outbox when somebody asks.

No label is about a single agent: the names of metrics and labels stay few, whatever the fleet.
"""

from collections.abc import Sequence
from functools import partial
from typing import get_args

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from keylime.appraisal.verdict import Accepted, Incomplete, Rejected
from keylime.database.clock import database_time
from keylime.database.transactions import Database
from keylime.messages.verifier import OperationalState
from keylime.metrics.measured import MeasuredService
from keylime.metrics.sharing import count_together
from keylime.service.metrics_place import MetricsPlace
from keylime_verifier.agents.deliveries import AGENT, Channel
from keylime_verifier.agents.lifecycle import (
    Defect,
    Outcome,
    Refused,
    Unreachable,
    Unusable,
    VDelivered,
    WrongKey,
)
from keylime_verifier.agents.shards import VerifierId
from keylime_verifier.database.schema import agents, deliveries, recipients, revocations, sessions
from keylime_verifier.polling.meter import Meter, SessionResult
from keylime_verifier.pushing.sessions import ACTIVE
from keylime_verifier.revocations.backlog import IS_WAITING

_SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LATE_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300)
_MOST_IDS = 200  # of findings: policies of operators may make up names
_OTHER = "other"
OUTCOMES: dict[type[Outcome], str] = {
    Accepted: "accepted",
    Rejected: "rejected",
    Incomplete: "incomplete",
    Unusable: "cannot_prove",
    Unreachable: "unreachable",
    WrongKey: "wrong_key",
    Refused: "refused",
    Defect: "defect",
}
"""What can come of a round of attestation, by the value of the label."""

PUSHED: dict[type[Outcome], str] = {
    Accepted: "accepted",
    Rejected: "rejected",
    Incomplete: "incomplete",
    Unreachable: "silent",
    Defect: "defect",
}
"""What can come of machines that attest by themselves."""


class VerifierMetrics(Meter):
    """The counters of this process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._rounds = Counter(
            "keylime_verifier_attestations",
            "Rounds of attestation by what came of them; only rejected ones say anything against a machine.",
            ["outcome"],
            registry=registry,
        )
        self._pushed = Counter(
            "keylime_verifier_pushed_attestations",
            "The same of machines that attest by themselves.",
            ["outcome"],
            registry=registry,
        )
        self._sessions = Counter(
            "keylime_verifier_push_sessions",
            "Sessions of those, or of whoever says that he is one: begun, proven, and why not.",
            ["result"],
            registry=registry,
        )
        self._findings = Counter(
            "keylime_verifier_findings",
            "What was found against machines, by the id of the finding.",
            ["event_id"],
            registry=registry,
        )
        self._keys = Counter(
            "keylime_verifier_payload_keys_delivered",
            "Key shares V that agents have taken.",
            registry=registry,
        )
        self._entries = Counter(
            "keylime_verifier_ima_entries_judged",
            "Entries of IMA lists in rounds that were accepted.",
            registry=registry,
        )
        self._late = Histogram(
            "keylime_verifier_round_lag_seconds",
            "How long after it was due a round began.",
            buckets=_LATE_S,
            registry=registry,
        )
        self._asked = Histogram(
            "keylime_verifier_quote_seconds",
            "From the question for a quote to the whole answer.",
            buckets=_SHORT_S,
            registry=registry,
        )
        self._appraised = Histogram(
            "keylime_verifier_appraisal_seconds",
            "What it took to judge evidence, without pauses.",
            buckets=_SHORT_S,
            registry=registry,
        )
        self._database = Histogram(
            "keylime_verifier_database_seconds",
            "What a transaction took, its waiting for a connection and its retries included.",
            ["kind"],
            buckets=_SHORT_S,
            registry=registry,
        )
        self._moved = Counter(
            "keylime_verifier_shards_moved",
            "Shards that this verifier has taken, and that have gone over to others.",
            ["direction"],
            registry=registry,
        )
        self._ids: set[str] = set()
        for outcome in OUTCOMES.values():  # there from the beginning: a rate needs a 0 to begin with
            self._rounds.labels(outcome)
        for outcome in PUSHED.values():
            self._pushed.labels(outcome)
        for result in get_args(SessionResult):
            self._sessions.labels(result)
        for direction in ("taken", "lost"):
            self._moved.labels(direction)

    def began(self, late_s: float) -> None:
        self._late.observe(max(0.0, late_s))

    def asked(self, took_s: float) -> None:
        self._asked.observe(took_s)

    def appraised(self, took_s: float) -> None:
        self._appraised.observe(took_s)

    def concluded(self, outcome: Outcome) -> None:
        if isinstance(outcome, VDelivered):
            self._keys.inc()
            return
        self._rounds.labels(OUTCOMES[type(outcome)]).inc()
        self._look_into(outcome)

    def pushed(self, outcome: Outcome) -> None:
        self._pushed.labels(PUSHED[type(outcome)]).inc()
        self._look_into(outcome)

    def session(self, result: SessionResult) -> None:
        self._sessions.labels(result).inc()

    def _look_into(self, outcome: Outcome) -> None:
        if isinstance(outcome, Accepted):
            self._entries.inc(outcome.quote.ima_entries)
        elif isinstance(outcome, Rejected):
            for finding in outcome.findings:
                self._findings.labels(self._known(finding.event_id)).inc()

    def moved(self, taken: int, lost: int) -> None:
        self._moved.labels("taken").inc(taken)
        self._moved.labels("lost").inc(lost)

    def transaction(self, kind: str, took_s: float) -> None:
        """A transaction of a kind ("read", "write") took so long."""
        self._database.labels(kind).observe(took_s)

    def _known(self, event_id: str) -> str:
        if event_id not in self._ids:
            if len(self._ids) >= _MOST_IDS:
                return _OTHER
            self._ids.add(event_id)
        return event_id


def measured_verifier(
    place: MetricsPlace, verifier_id: VerifierId, number: int, count: int
) -> MeasuredService[Meter]:
    """For the worker `number` of so many."""
    if count > 1:
        count_together(place.directory, number)
    metrics = VerifierMetrics()
    return MeasuredService(
        metrics,
        name="verifier",
        place=place,
        registry=metrics.registry,
        observe=metrics.transaction,
        count=partial(measure, verifier_id),
        is_shared=count > 1,
    )


async def measure(verifier_id: VerifierId, database: Database) -> Sequence[Metric]:
    """The agents of a verifier and the revocations of its database, as they are now.

    Raises DatabaseUnavailable.
    """
    by_state = (
        sa.select(agents.c.operational_state, sa.func.count())
        .where(agents.c.verifier_id == verifier_id)
        .group_by(agents.c.operational_state)
    )
    by_channel = (
        sa.select(deliveries.c.channel, sa.func.count(), sa.func.min(revocations.c.created_at))
        .select_from(deliveries.join(revocations, deliveries.c.revocation_id == revocations.c.revocation_id))
        .where(IS_WAITING, revocations.c.verifier_id == verifier_id)
        .group_by(deliveries.c.channel)
    )
    # What agents are still to be told has no rows until an attempt was in vain.
    newest = sa.select(sa.func.max(revocations.c.number)).scalar_subquery()
    behind = sa.select(sa.func.count(), sa.func.min(recipients.c.through)).where(
        recipients.c.through < newest
    )

    def work(connection: sa.Connection) -> Sequence[Metric]:
        now = connection.execute(sa.select(database_time())).scalar_one()
        states = {OperationalState(state): count for state, count in connection.execute(by_state)}
        waiting = {
            Channel(channel): (count, oldest) for channel, count, oldest in connection.execute(by_channel)
        }
        tokens = sa.select(sa.func.count()).where(
            sessions.c.state == ACTIVE, sessions.c.token_expires_at > now
        )
        held = connection.execute(tokens).scalar_one()
        count, through = connection.execute(behind).one()
        if count:
            oldest = sa.select(sa.func.min(revocations.c.created_at)).where(revocations.c.number > through)
            before = waiting.get(AGENT, (0, now))
            since = connection.execute(oldest).scalar()
            waiting[AGENT] = (before[0] + count, min(before[1], now if since is None else since))
        return (_agents(states), _tokens(held), *_outbox(waiting, now))

    return await database.read("measure the fleet", work)


def _agents(states: dict[OperationalState, int]) -> Metric:
    found = GaugeMetricFamily(
        "keylime_verifier_agents",
        "Agents of this verifier and of all that share its work, by their operational state.",
        labels=["state"],
    )
    for state in OperationalState:
        found.add_metric([state.name.lower()], states.get(state, 0))
    return found


def _tokens(held: int) -> Metric:
    return GaugeMetricFamily(
        "keylime_verifier_push_tokens", "Tokens of machines that attest by themselves which hold.", value=held
    )


def _outbox(waiting: dict[Channel, tuple[int, int]], now: float) -> tuple[Metric, Metric]:
    depth = GaugeMetricFamily(
        "keylime_verifier_outbox_deliveries",
        "Deliveries of revocations that are still to be made; of the channel agent: agents to be told.",
        labels=["channel"],
    )
    age = GaugeMetricFamily(
        "keylime_verifier_outbox_age_seconds",
        "For how long the oldest of them has been waiting; 0 where none waits.",
        labels=["channel"],
    )
    for channel in Channel:
        count, since = waiting.get(channel, (0, now))
        depth.add_metric([channel.value], count)
        age.add_metric([channel.value], max(0.0, now - since))
    return depth, age
