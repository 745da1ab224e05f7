"""Which PCRs the logs of a boot must explain: sets that operators name (docs/adr/0018)."""

import enum
from dataclasses import dataclass

from keylime.tpm.pcr import MEASURED_BOOT_PCRS

# In an option of the verifier, and as a member of a reference state.
OPTION = "measured_boot_explained_pcrs"
MEMBER = "explained_pcrs"
HOW_TO_LEAVE_OUT = (
    f"choose a smaller set of PCRs that the logs must explain ({OPTION} in verifier.conf, or {MEMBER} in the "
    "reference state)"
)
RUN_TIME_PCRS = frozenset({11, 15})  # which the running system goes on to extend
# What systemd extends after a boot through its stub with more than a constant, so that its log must tell.
LOGGED_PCRS = frozenset({9, *RUN_TIME_PCRS})


class PcrSet(enum.Enum):
    """The names that an operator may give."""

    AUTOMATIC = "automatic"
    FIRMWARE = "firmware"
    BOOT = "boot"
    ALL = "all"


NAMES = tuple(one.value for one in PcrSet)


@dataclass(frozen=True, slots=True)
class ExplainedPcrs:
    """PCRs that must be quoted and explained; those `if_logged` only where the system's own log comes."""

    required: frozenset[int]
    if_logged: frozenset[int] = frozenset()


def explained_pcrs(chosen: PcrSet, relevant: frozenset[int], *, has_rules: bool) -> ExplainedPcrs:
    """What a policy must have explained whose rules rest on the events of `relevant` PCRs (none named: all).

    A choice never takes away what rules say that they rest on. Rules that name nothing may rest on anything,
    so that nothing is excused unless somebody chose it.
    """
    needed = MEASURED_BOOT_PCRS & relevant
    match chosen:
        case PcrSet.AUTOMATIC if relevant:
            return ExplainedPcrs(needed)
        case PcrSet.AUTOMATIC:
            return ExplainedPcrs(MEASURED_BOOT_PCRS, frozenset() if has_rules else LOGGED_PCRS)
        case PcrSet.FIRMWARE:
            return ExplainedPcrs(needed | frozenset(range(8)))
        case PcrSet.BOOT:
            return ExplainedPcrs(needed | (MEASURED_BOOT_PCRS - RUN_TIME_PCRS))
        case PcrSet.ALL:
            return ExplainedPcrs(MEASURED_BOOT_PCRS)
