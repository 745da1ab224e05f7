"""Median and 99th percentile of durations."""

import statistics
from collections.abc import Sequence


def percentiles_ms(values_s: Sequence[float]) -> tuple[float, float]:
    """Both in milliseconds, of seconds."""
    ordered = statistics.quantiles(values_s, n=100, method="inclusive")
    return ordered[49] * 1e3, ordered[98] * 1e3
