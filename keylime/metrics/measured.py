"""Measuring as it is configured: the database is timed, and a page of everything is served."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from keylime.database.timed import TimedDatabase
from keylime.database.transactions import Database
from keylime.metrics.measuring import Measuring, MeterT
from keylime.metrics.page import MetricsPage
from keylime.service.certificates import CertificateKeeper
from keylime.service.health import Health
from keylime.service.metrics_place import MetricsPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredService(Measuring[MeterT]):
    """Measures what the service `name` does, and serves it.

    `observe` is told the kind of each transaction and its seconds; `count` says what the database has when
    somebody asks, and raises DatabaseUnavailable.
    """

    name: str
    place: MetricsPlace
    registry: CollectorRegistry
    observe: Callable[[str, float], None]
    count: Callable[[Database], Awaitable[Sequence[Metric]]]
    is_shared: bool  # by several workers

    def timed(self, database: Database) -> Database:
        return TimedDatabase(database, self.observe)

    def serve(
        self, database: Database, keeper: CertificateKeeper, health: Health, stack: AsyncExitStack
    ) -> None:
        page = MetricsPage(
            self.name,
            self.registry,
            lambda: self.count(database),
            keeper,
            health,
            shared=self.place.directory if self.is_shared else None,
        )
        page.serve(self.place, stack, reuse_port=self.is_shared)
