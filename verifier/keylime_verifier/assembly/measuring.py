"""Whether the verifier is measured; where it is not, the library for it is not loaded."""

from keylime.metrics.measuring import Measuring
from keylime_verifier.config import VerifierConfig
from keylime_verifier.polling.meter import Meter


def measuring(config: VerifierConfig, number: int, count: int) -> Measuring[Meter]:
    """As it is configured, for the worker `number` of so many."""
    if config.metrics is None:
        return Measuring(Meter())
    from keylime_verifier.assembly.metrics import measured_verifier

    return measured_verifier(config.metrics, config.verifier_id, number, count)
