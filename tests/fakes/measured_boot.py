"""Judges boot logs, genuine and edited, as a verifier would: against quoted PCRs and a reference state."""

import functools
import json
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keylime.findings.finding import Finding
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.appraisal import BootResult, appraise_boot_log
from keylime.measured_boot.boot_policy import (
    MeasuredBootPolicy,
    built_in_policies,
    compile_measured_boot_policy,
)
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.reference_state import create_reference_state
from keylime.measured_boot.replay import replay_event_log
from keylime.measured_boot.variables import GLOBAL_VARIABLE
from tests.captures import capture
from tests.fakes.event_logs import Record, build_log, take_apart, variable

SHA256 = HashAlgorithm.SHA256
Records = Sequence[Record]
Chosen = Callable[[Record], bool]


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


def reasons(records: Records, refstate: object) -> str:
    """What is said against such a machine, in one text."""
    return " ".join(str(finding.context["reason"]) for finding in boot(records, refstate))


def edit(records: Records, chosen: Chosen, change: Callable[[Record], Record]) -> list[Record]:
    """The records with `change` made to those chosen, of which there is at least one."""
    assert any(chosen(item) for item in records)
    return [change(item) if chosen(item) else item for item in records]


def of(pcr: int, kind: EventType, text: bytes = b"") -> Chosen:
    """Chooses the events of one PCR and type whose data hold `text`."""
    return lambda item: item.pcr == pcr and item.type_code == kind and text in item.data


def named(name: str, kind: EventType = EventType.EFI_VARIABLE_DRIVER_CONFIG) -> Chosen:
    """Chooses the events about the UEFI variable `name`."""
    length, units = struct.pack("<Q", len(name)), name.encode("utf-16-le")
    return lambda item: (
        item.type_code == kind and item.data[16:24] == length and item.data[32 : 32 + len(units)] == units
    )


def with_variable(name: str, guid: uuid.UUID, value: bytes) -> list[Record]:
    """The log of a machine on which the configuration variable `name` is another."""
    return edit(
        grub_records(), named(name), lambda item: item.with_data(variable(guid.bytes_le, name, value))
    )


def without(chosen: Chosen) -> list[Record]:
    """The log without the chosen events, of which there is at least one."""
    kept = [item for item in grub_records() if not chosen(item)]
    assert len(kept) < len(grub_records())
    return kept


def after(chosen: Chosen, *added: Record) -> list[Record]:
    """The log with events `added` after the last chosen one."""
    records = grub_records()
    position = max(index for index, item in enumerate(records) if chosen(item))
    return [*records[: position + 1], *added, *records[position + 1 :]]


def measured(chosen: Chosen, image: bytes) -> list[Record]:
    """The same log after a boot that measured `image` there."""
    return edit(grub_records(), chosen, lambda item: item.with_data(item.data, image))


def kernel(**changes: str) -> dict[str, str]:
    """The blessed kernel of `reference_state()` with some members replaced."""
    return {**reference_state()["kernels"][0], **changes}


def no_secure_boot() -> tuple[list[Record], dict[str, object]]:
    """A boot of the same chain with Secure Boot off: GRUB starts the kernel itself."""
    started = [item for item in grub_records() if of(4, EventType.EFI_BOOT_SERVICES_APPLICATION)(item)]
    records = [
        item for item in with_variable("SecureBoot", GLOBAL_VARIABLE, b"\0") if item not in started[2:]
    ]
    (vmlinuz,) = filter(of(9, EventType.IPL, b"/vmlinuz"), records)
    good = kernel(vmlinuz_plain_sha256=f"0x{dict(vmlinuz.digests)[SHA256].hex()}")
    del good["kernel_authcode_sha256"]
    return records, reference_state(has_secureboot=False, kernels=[good])
