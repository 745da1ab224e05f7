"""What a registrar measures: requests as they come, and what is registered when somebody asks.

No label is about a single agent.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from keylime.database.transactions import Database
from keylime.metrics.measured import MeasuredService
from keylime.metrics.sharing import count_together
from keylime.service.metrics_place import MetricsPlace
from keylime_registrar.handlers import ACTIVATIONS, REGISTRATIONS, RequestMeter
from keylime_registrar.schema import pending_registrations, registrations

_SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class RegistrarMetrics(RequestMeter):
    """The counters of this process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._registrations = Counter(
            "keylime_registrar_registrations",
            "Registrations by what came of them.",
            ["result"],
            registry=registry,
        )
        self._activations = Counter(
            "keylime_registrar_activations",
            "Proofs of registrations by what came of them.",
            ["result"],
            registry=registry,
        )
        self._limited = Counter(
            "keylime_registrar_rate_limited",
            "Requests whose source was told to come back later.",
            registry=registry,
        )
        self._database = Histogram(
            "keylime_registrar_database_seconds",
            "What a transaction took, its waiting for a connection and its retries included.",
            ["kind"],
            buckets=_SHORT_S,
            registry=registry,
        )
        # Worker 0 alone looks at them; the others' zeros are no time.
        self._agent_certificates = Gauge(
            "keylime_registrar_agent_certificate_expiry_timestamp_seconds",
            "When the first of all agents' TLS certificates ends, in seconds since the epoch; 0 for none.",
            multiprocess_mode="max",
            registry=registry,
        )
        for result in REGISTRATIONS:  # there from the beginning: a rate needs a 0 to begin with
            self._registrations.labels(result)
        for result in ACTIVATIONS:
            self._activations.labels(result)

    def registration(self, result: str) -> None:
        self._registrations.labels(result).inc()

    def activation(self, result: str) -> None:
        self._activations.labels(result).inc()

    def limited(self) -> None:
        self._limited.inc()

    def agent_certificates_end(self, at: float) -> None:
        self._agent_certificates.set(at)

    def transaction(self, kind: str, took_s: float) -> None:
        """A transaction of a kind ("read", "write") took so long."""
        self._database.labels(kind).observe(took_s)


def measured_registrar(place: MetricsPlace, number: int, count: int) -> MeasuredService[RequestMeter]:
    """For the worker `number` of so many."""
    if count > 1:
        count_together(place.directory, number)
    metrics = RegistrarMetrics()
    return MeasuredService(
        metrics,
        name="registrar",
        place=place,
        registry=metrics.registry,
        observe=metrics.transaction,
        count=measure,
        is_shared=count > 1,
    )


async def measure(database: Database) -> Sequence[Metric]:
    """What is registered now. Raises DatabaseUnavailable."""

    def work(connection: sa.Connection) -> Sequence[Metric]:
        found = GaugeMetricFamily(
            "keylime_registrar_agents",
            "Agents that have proven their TPM (active), and registrations that wait for it (pending).",
            labels=["state"],
        )
        for state, table in (("active", registrations), ("pending", pending_registrations)):
            count = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            found.add_metric([state], count)
        return (found,)

    return await database.read("measure the registrations", work)
