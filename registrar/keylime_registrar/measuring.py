"""Whether and how the registrar is measured; where it is not, the library for it is not loaded."""

from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from keylime.database.transactions import Database
from keylime.service.certificates import CertificateKeeper
from keylime.service.health import Health
from keylime_registrar.config import RegistrarConfig
from keylime_registrar.handlers import Meter


@dataclass(frozen=True, slots=True)
class Measuring:
    """Measures nothing."""

    meter: Meter = field(default_factory=Meter)

    def timed(self, database: Database) -> Database:
        """The database as the others are to use it."""
        return database

    def serve(
        self, database: Database, keeper: CertificateKeeper, health: Health, stack: AsyncExitStack
    ) -> None:
        """Serves what was measured until `stack` ends. Raises ConfigError."""


def measuring(config: RegistrarConfig, number: int) -> Measuring:
    """As it is configured, for the worker `number`."""
    if config.metrics is None:
        return Measuring()
    from keylime_registrar.metrics import MeasuredRegistrar

    return MeasuredRegistrar.of(config.metrics, number, config.workers)
