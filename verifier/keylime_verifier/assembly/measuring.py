"""Whether and how the verifier is measured; where it is not, the library for it is not loaded."""

from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from keylime.database.transactions import Database
from keylime.service.certificates import CertificateKeeper
from keylime.service.health import Health
from keylime_verifier.config import VerifierConfig
from keylime_verifier.polling.meter import Meter


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


def measuring(config: VerifierConfig, number: int, count: int) -> Measuring:
    """As it is configured, for the worker `number` of so many."""
    if config.metrics is None:
        return Measuring()
    from keylime_verifier.assembly.metrics import MeasuredVerifier

    return MeasuredVerifier.of(config.metrics, config.verifier_id, number, count)
