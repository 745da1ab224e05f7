"""What a policy judges. The values are in databases."""

from enum import StrEnum


class PolicyCategory(StrEnum):
    """Of files in memory, or of a boot."""

    RUNTIME = "runtime"
    MEASURED_BOOT = "measured_boot"


RUNTIME, MEASURED_BOOT = PolicyCategory

PolicyKey = tuple[PolicyCategory, str]
"""Category and name, as in our table."""
