"""Judges boot logs, genuine and edited, as a verifier would: against quoted PCRs and a reference state."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keylime.appraisal.findings import Finding
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.appraisal import BootResult, appraise_boot_log
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.reference_state import create_reference_state
from keylime.measured_boot.replay import replay_event_log
from keylime.policy.measured_boot import MeasuredBootPolicy, built_in_policies, compile_measured_boot_policy
from tests.captures import capture
from tests.fakes.event_logs import Record, build_log, take_apart

SHA256 = HashAlgorithm.SHA256
Records = Sequence[Record]


def grub_records() -> list[Record]:
    """The events of the captured boot with Secure Boot, shim and GRUB."""
    return take_apart(capture("grub-secureboot").boot_log)


def grub_pcrs(bank: HashAlgorithm = SHA256) -> Mapping[int, bytes]:
    """What the TPM held after that boot."""
    return capture("grub-secureboot").stage("s1-clean").pcrs(bank.label)


@functools.cache
def _reference_state() -> str:
    return json.dumps(create_reference_state(parse_event_log(capture("grub-secureboot").boot_log)))


def reference_state(**changes: object) -> dict[str, Any]:
    """The reference state made from the captured boot with GRUB, with some members replaced."""
    return {**json.loads(_reference_state()), **changes}


def policy(refstate: object, name: str = "example") -> MeasuredBootPolicy:
    """A compiled policy that is on."""
    compiled = compile_measured_boot_policy(
        json.dumps(refstate), policy_name=name, registry=built_in_policies()
    )
    assert compiled is not None
    return compiled


def appraise(
    log: bytes | None,
    judged_by: MeasuredBootPolicy,
    quoted: Mapping[int, bytes],
    bank: HashAlgorithm = SHA256,
) -> BootResult:
    """The result of one round in which the content counts."""
    return appraise_boot_log(log, bank=bank, quoted=quoted, policy=judged_by, evaluate_content=True)


def pcrs_after(records: Records) -> Mapping[int, bytes]:
    """What the TPM of a machine holds that really booted like this."""
    return replay_event_log(parse_event_log(build_log(records)))[SHA256]


def boot(records: Records, refstate: object) -> tuple[Finding, ...]:
    """Findings about a machine that really booted like this: its TPM holds what its log says."""
    return appraise(build_log(records), policy(refstate), pcrs_after(records)).findings


def edit(
    records: Records, chosen: Callable[[Record], bool], change: Callable[[Record], Record]
) -> list[Record]:
    """The records with `change` made to those chosen, of which there is at least one."""
    assert any(chosen(item) for item in records)
    return [change(item) if chosen(item) else item for item in records]
