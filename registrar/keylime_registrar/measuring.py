"""Whether the registrar is measured; where it is not, the library for it is not loaded."""

from keylime.metrics.measuring import Measuring
from keylime_registrar.config import RegistrarConfig
from keylime_registrar.handlers import RequestMeter


def measuring(config: RegistrarConfig, number: int) -> Measuring[RequestMeter]:
    """As it is configured, for the worker `number`."""
    if config.metrics is None:
        return Measuring(RequestMeter())
    from keylime_registrar.metrics import measured_registrar

    return measured_registrar(config.metrics, number, config.workers)
