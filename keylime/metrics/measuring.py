"""What a service asks of its measuring: nothing is measured here, and the library for it is not loaded."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

from keylime.database.transactions import Database
from keylime.service.certificates import CertificateKeeper
from keylime.service.health import Health

MeterT = TypeVar("MeterT")


@dataclass(frozen=True, slots=True)
class Measuring(Generic[MeterT]):
    """Measures nothing; `meter` is told what the service does all the same."""

    meter: MeterT

    def timed(self, database: Database) -> Database:
        """The database as the others are to use it."""
        return database

    def serve(
        self, database: Database, keeper: CertificateKeeper, health: Health, stack: AsyncExitStack
    ) -> None:
        """Serves what was measured until `stack` ends. Raises ConfigError."""
