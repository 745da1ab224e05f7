"""See `keylime.measured_boot.boot_policy`."""

from keylime.measured_boot.boot_policy import (
    MeasuredBootPolicy,
    built_in_policies,
    compile_measured_boot_policy,
)

__all__ = ["MeasuredBootPolicy", "built_in_policies", "compile_measured_boot_policy"]
