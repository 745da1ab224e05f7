"""Whether a quote goes on from the boot that the last accepted one came from (TPM 2.0 Part 1, 36.3-36.7)."""

import enum

import msgspec

from keylime.appraisal.checkpoint import BootSession
from keylime.appraisal.evidence import quote_finding
from keylime.findings.finding import Finding
from keylime.tpm.structures import ClockInfo

MOST_CLOCK = (1 << 63) - 1
"""Milliseconds: three hundred million years. Databases count no further, and TPM2_ClockSet goes beyond."""


class Continuity(enum.Enum):
    """How two quotes of one TPM relate."""

    FIRST = "first"  # nothing to go on from
    SAME_BOOT = "same boot"
    REBOOTED = "rebooted"  # the TPM was reset
    RESUMED = "resumed"  # resumed from suspend, or another boot time within one boot


class ContinuityResult(msgspec.Struct, frozen=True):
    """The relation, and what speaks against the quote or is worth a log line."""

    continuity: Continuity
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def judge_continuity(previous: BootSession | None, clock: ClockInfo, boottime: int) -> ContinuityResult:
    """Compares the counters and clock in a verified quote with those of the last accepted one.

    Counters that fall, or a clock that goes back while the TPM calls it safe, mean an older quote or a
    rolled-back TPM. A clock that stands still means nothing: it counts milliseconds, and some TPMs move it on
    in longer steps; that a quote is fresh is for its nonce to tell. A clock that is not safe (power was lost)
    is reported, not refused. One that no TPM has counted to was set there by whoever owns the machine.
    """
    if clock.clock > MOST_CLOCK:
        return _unbelievable(f"clock is {clock.clock} ms, more than any TPM can have counted")
    notes = () if clock.safe else ("the TPM's clock is not safe: it may have lost time in a power failure",)
    if previous is None:
        return ContinuityResult(Continuity.FIRST, notes=notes)
    if clock.reset_count < previous.reset_count:
        return _went_back("resetCount", previous.reset_count, clock.reset_count)
    if clock.reset_count > previous.reset_count:
        return ContinuityResult(Continuity.REBOOTED, notes=notes)
    if clock.restart_count < previous.restart_count:
        return _went_back("restartCount", previous.restart_count, clock.restart_count)
    if clock.clock < previous.clock and clock.safe:
        return _went_back("clock", previous.clock, clock.clock)
    if clock.restart_count > previous.restart_count or boottime != previous.boottime:
        return ContinuityResult(Continuity.RESUMED, notes=notes)
    return ContinuityResult(Continuity.SAME_BOOT, notes=notes)


def _went_back(what: str, before: int, now: int) -> ContinuityResult:
    return _unbelievable(f"{what} is {now} and was {before} in the last accepted quote")


def _unbelievable(reason: str) -> ContinuityResult:
    return ContinuityResult(
        Continuity.SAME_BOOT,
        (quote_finding("quote_validation", "TPM clock validation", error=reason),),
    )
