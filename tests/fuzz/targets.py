"""All fuzz targets by name."""

from tests.fuzz import log_targets, policy_targets, tpm_targets, wire_targets
from tests.fuzz.target import Targets

TARGETS: Targets = {
    **tpm_targets.TARGETS,
    **log_targets.TARGETS,
    **policy_targets.TARGETS,
    **wire_targets.TARGETS,
}
