"""The `example` policy: a PC with UEFI that boots shim, GRUB and a Linux kernel, held to one reference state.

Each event must be one that such a boot has (`_RULES`, by PCR and type), and its data must hash to its
digest where the type's digest covers them. What the boot loaded is collected on the way, and compared with
the blessed firmware and kernels at the end. The name of a file in PCR 9 is not covered by any digest: it
only says which digest to look at.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from keylime.appraisal.findings import JsonValue
from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.binding import GRUB_COMMAND, KERNEL_COMMAND_LINE, Binding, data_binding
from keylime.measured_boot.event_log import Event, EventLog
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import Separator, Text
from keylime.measured_boot.example_reference import (
    ExampleReference,
    GoodFirmware,
    GoodKernel,
    digest_for,
    parse_example_reference,
)
from keylime.measured_boot.policies import Judge, Objection
from keylime.measured_boot.variables import (
    GLOBAL_VARIABLE,
    IMAGE_SECURITY,
    SHA256_SIGNATURES,
    SHIM_LOCK,
    X509_SIGNATURES,
    Signature,
    SignatureList,
    UefiVariable,
)

_RELEVANT_PCRS = frozenset({*range(10), 14})
_SEPARATED_PCRS = range(8)
_SECURE_BOOT_PCR = 7
_GOOD_SEPARATORS = frozenset({0, 0xFFFFFFFF})
_SWITCHES = (b"\0", b"\1")

_ACTIONS: Mapping[int, frozenset[str]] = {
    1: frozenset({"Entering ROM Based Setup"}),
    4: frozenset(
        {"Calling EFI Application from Boot Option", "Returning from EFI Application from Boot Option"},
    ),
    5: frozenset(
        {
            "Exit Boot Services Invocation",
            "Exit Boot Services Returned with Failure",
            "Exit Boot Services Returned with Success",
        }
    ),
}

# The firmware measures these once each, even when they are empty.
_CONFIGURATION = frozenset(
    {
        (GLOBAL_VARIABLE, "SecureBoot"),
        (GLOBAL_VARIABLE, "PK"),
        (GLOBAL_VARIABLE, "KEK"),
        (IMAGE_SECURITY, "db"),
        (IMAGE_SECURITY, "dbx"),
    }
)
_UNJUDGED_AUTHORITIES = frozenset(
    {(IMAGE_SECURITY, "db"), (SHIM_LOCK, "SbatLevel"), (SHIM_LOCK, "Shim"), (SHIM_LOCK, "MokListRT")}
)


@dataclass(frozen=True, slots=True)
class ExampleRules:
    """The `example` policy among the named ones."""

    def get_relevant_pcrs(self) -> frozenset[int]:
        """PCR 0-9, and PCR 14, where shim measures its own keys."""
        return _RELEVANT_PCRS

    def compile(self, refstate: JsonValue) -> Judge:
        """The judge for one reference state. Raises PolicyError, which names the member."""
        reference = parse_example_reference(refstate)

        def judge(log: EventLog, bank: HashAlgorithm) -> tuple[Objection, ...]:
            return _Boot(reference, bank).judge(log)

        return judge


@dataclass(slots=True)
class _Boot:
    """One boot while its log is walked: what was seen, and what speaks against it."""

    reference: ExampleReference
    bank: HashAlgorithm
    objections: list[Objection] = field(default_factory=list)
    counts: Counter[object] = field(default_factory=Counter)
    crtm_versions: list[Event] = field(default_factory=list)
    firmware_volumes: list[Event] = field(default_factory=list)
    applications: list[Event] = field(default_factory=list)
    kernel_files: list[Event] = field(default_factory=list)
    initrds: list[Event] = field(default_factory=list)
    command_lines: list[str] = field(default_factory=list)

    def judge(self, log: EventLog) -> tuple[Objection, ...]:
        for event in log.events:
            self._judge_event(event)
        self._judge_separators()
        if self.reference.has_secureboot:
            self._judge_configuration()
        self._judge_firmware()
        self._judge_kernel()
        return tuple(self.objections)

    def object(self, event: Event, reason: str, expected: tuple[str, ...] = ()) -> None:
        observed = event.digests[self.bank].hex() if self.bank in event.digests else None
        self.objections.append(
            Objection(f"{event.type_name} in PCR {event.pcr}: {reason}", event.number, observed, expected)
        )

    def at_most(self, limit: int, event: Event, what: str) -> None:
        self.counts[event.pcr, event.type_code, what] += 1
        if self.counts[event.pcr, event.type_code, what] > limit:
            self.object(event, f"{what} more than {limit} times" if limit > 1 else f"{what} more than once")

    def is_listed(self, event: Event, good: Mapping[str, bytes]) -> bool:
        """Whether the digest that the quote vouches for is the good one."""
        return event.digests.get(self.bank) == digest_for(good, self.bank) is not None

    def _judge_event(self, event: Event) -> None:
        if not event.is_extended:
            return  # in no PCR, so that anyone could add or drop it; the locality is proven by PCR 0 itself
        rule = _RULES.get((event.pcr, event.type_code))
        if rule is None:
            self.object(event, "not expected")
        elif data_binding(event) is Binding.MISMATCH:
            self.object(event, "data are not what was measured")
        else:
            rule(self, event)

    def _judge_separators(self) -> None:
        for pcr in _SEPARATED_PCRS:
            if not self.counts[pcr, EventType.SEPARATOR, "separator"]:
                self.objections.append(Objection(f"PCR {pcr} has no separator"))

    def _judge_configuration(self) -> None:
        missing = sorted(name for guid, name in _CONFIGURATION if not self.counts[guid, name])
        if missing:
            self.objections.append(Objection(f"Secure Boot variables are not measured: {', '.join(missing)}"))

    def _judge_firmware(self) -> None:
        if not any(self._is_firmware(good) for good in self.reference.firmware):
            measured = [*self.crtm_versions, *self.firmware_volumes]
            observed = " ".join(
                event.digests[self.bank].hex() for event in measured if self.bank in event.digests
            )
            self.objections.append(
                Objection("firmware is none of the reference state", observed=observed or "none")
            )

    def _is_firmware(self, good: GoodFirmware) -> bool:
        return (
            len(self.crtm_versions) == 1
            and self.is_listed(self.crtm_versions[0], good.crtm_version)
            and len(self.firmware_volumes) == len(good.volumes)
            and all(map(self.is_listed, self.firmware_volumes, good.volumes))
        )

    def _judge_kernel(self) -> None:
        if self.bank is not HashAlgorithm.SHA256:
            reason = f"kernels are listed by SHA-256 digest, the quote covers the {self.bank.label} bank"
            self.objections.append(Objection(reason))
            return
        reasons = [self._why_not_kernel(good) for good in self.reference.kernels]
        if all(reasons):
            alternatives = "; ".join(
                f"kernels[{position}]: {reason}" for position, reason in enumerate(reasons)
            )
            self.objections.append(
                Objection(f"no blessed kernel was booted ({alternatives or 'there is none'})")
            )

    def _why_not_kernel(self, good: GoodKernel) -> str:
        if _digests(self.applications) not in good.applications:
            return f"other images were started ({len(self.applications)} of them)"
        if _digests(self.initrds) != (good.initrd,):
            return (
                "another initrd was loaded"
                if len(self.initrds) == 1
                else f"{len(self.initrds)} initrds were loaded"
            )
        if len(self.kernel_files) != 1:
            return f"{len(self.kernel_files)} kernel files were loaded"
        if good.kernel_file is not None and _digests(self.kernel_files) != (good.kernel_file,):
            return "another kernel file was loaded"
        if len(self.command_lines) != 1 or not good.command_line.fullmatch(self.command_lines[0]):
            return f"command line is {self.command_lines}, expected {good.command_line_text!r}"
        return ""


def _digests(events: Collection[Event]) -> tuple[bytes, ...]:
    return tuple(event.digests[HashAlgorithm.SHA256] for event in events)


def _anything(boot: _Boot, event: Event) -> None:
    """Accepts the event, whatever it is."""


def _at_most(limit: int) -> Callable[[_Boot, Event], None]:
    def rule(boot: _Boot, event: Event) -> None:
        boot.at_most(limit, event, "occurs")

    return rule


def _separator(boot: _Boot, event: Event) -> None:
    boot.at_most(1, event, "separator")
    if not isinstance(event.decoded, Separator) or event.decoded.value not in _GOOD_SEPARATORS:
        boot.object(event, "the firmware reports an error")


def _crtm_version(boot: _Boot, event: Event) -> None:
    boot.crtm_versions.append(event)


def _firmware_volume(boot: _Boot, event: Event) -> None:
    boot.firmware_volumes.append(event)


def _application(boot: _Boot, event: Event) -> None:
    boot.applications.append(event)


def _action(boot: _Boot, event: Event) -> None:
    if not isinstance(event.decoded, Text) or event.decoded.text not in _ACTIONS[event.pcr]:
        boot.object(event, "unknown action")


def _boot_variable(boot: _Boot, event: Event) -> None:
    variable = event.decoded
    if not isinstance(variable, UefiVariable) or variable.guid != GLOBAL_VARIABLE:
        boot.object(event, "not a boot variable")
    elif variable.name != "BootOrder" and not variable.is_boot_option:
        boot.object(event, f"variable {variable.name!r} is not expected")


def _configuration(boot: _Boot, event: Event) -> None:
    """SecureBoot, PK, KEK, db, dbx and vendor_db, before the separator: later ones can be anybody's."""
    variable = event.decoded
    if not isinstance(variable, UefiVariable):
        boot.object(event, "not a variable")
        return
    judge = _VARIABLES.get((variable.guid, variable.name))
    if judge is None:
        boot.object(event, f"variable {variable.name!r} is not expected")
        return
    boot.counts[variable.guid, variable.name] += 1
    if boot.counts[variable.guid, variable.name] > 1:
        boot.object(event, f"{variable.name} is measured more than once")
    if boot.reference.has_secureboot and boot.counts[_SECURE_BOOT_PCR, EventType.SEPARATOR, "separator"]:
        boot.object(event, f"{variable.name} is measured after the separator")
    reason = judge(boot.reference, variable)
    if reason:
        boot.object(event, f"{variable.name} {reason}")


def _secure_boot(reference: ExampleReference, variable: UefiVariable) -> str:
    if variable.is_set == reference.has_secureboot:
        return ""
    return "is on, the reference state has it off" if variable.is_set else "is off"


def _subset(
    listed: Callable[[ExampleReference], frozenset[Signature]], types: frozenset[object]
) -> Callable[[ExampleReference, UefiVariable], str]:
    """The variable's keys must be among those listed."""

    def judge(reference: ExampleReference, variable: UefiVariable) -> str:
        good = listed(reference)
        if not good and not reference.has_secureboot:
            return ""
        lists = _signature_lists(variable)
        if not lists:
            return "has no signature list"
        if any(item.type not in types for item in lists):
            return "has signatures of another type"
        unknown = {signature for item in lists for signature in item.signatures} - good
        return f"has {len(unknown)} keys that the reference state does not list" if unknown else ""

    return judge


def _dbx(reference: ExampleReference, variable: UefiVariable) -> str:
    """The variable must revoke at least what is listed."""
    if not reference.dbx and not reference.has_secureboot:
        return ""
    lists = _signature_lists(variable)
    if not lists or len(lists) != 1 or lists[0].type != SHA256_SIGNATURES:
        return "is not exactly one list of SHA-256 hashes"
    missing = reference.dbx.difference(lists[0].signatures)
    return f"lacks {len(missing)} hashes of the reference state" if missing else ""


def _signature_lists(variable: UefiVariable) -> tuple[SignatureList, ...] | None:
    try:
        return variable.signature_lists()
    except MalformedEvidence:
        return None


def _authority(boot: _Boot, event: Event) -> None:
    variable = event.decoded
    if not isinstance(variable, UefiVariable):
        boot.object(event, "not a variable")
        return
    boot.at_most(1, event, f"{variable.guid} {variable.name!r}")
    key = (variable.guid, variable.name)
    if key in _UNJUDGED_AUTHORITIES:
        return
    if key == (SHIM_LOCK, "MokListTrusted"):
        if variable.value not in _SWITCHES:
            boot.object(event, "MokListTrusted is neither on nor off")
    elif key == (IMAGE_SECURITY, "vendor_db"):
        signatures = variable.vendor_signatures()
        if not signatures or not boot.reference.vendor_db.issuperset(signatures):
            boot.object(event, "vendor_db has keys that the reference state does not list")
    else:
        boot.object(event, f"variable {variable.name!r} is not expected")


def _grub_text(boot: _Boot, event: Event) -> None:
    text = event.decoded.text if isinstance(event.decoded, Text) else ""
    if text.startswith(KERNEL_COMMAND_LINE):
        boot.command_lines.append(text.removeprefix(KERNEL_COMMAND_LINE))
    elif not text.startswith(GRUB_COMMAND):
        boot.object(event, "neither a GRUB command nor a kernel command line")


def _grub_file(boot: _Boot, event: Event) -> None:
    name = event.decoded.text if isinstance(event.decoded, Text) else ""
    if "\n" in name:
        boot.object(event, "file name with a line break")
    elif "/loader/entries" in name or "/grub" in name:
        return
    elif "/vmlinuz" in name:
        boot.kernel_files.append(event)
    elif "/initrd" in name or "/initramfs" in name:
        boot.initrds.append(event)
    else:
        boot.object(event, f"file {name!r} is not expected")


def _shim_list(boot: _Boot, event: Event) -> None:
    name = event.decoded.text if isinstance(event.decoded, Text) else ""
    good: tuple[Mapping[str, bytes], ...]
    match name:
        case "MokList":
            good = boot.reference.mok_list
        case "MokListX":
            good = boot.reference.mok_list_x
        case "MokListTrusted":
            boot.at_most(1, event, name)
            # No digest covers the name; only the two possible values may hide behind this one.
            good = tuple({boot.bank.label: boot.bank.digest(value)} for value in _SWITCHES)
        case _:
            boot.object(event, f"{name!r} is not expected")
            return
    if not any(boot.is_listed(event, digest) for digest in good):
        expected = tuple(digest[boot.bank.label].hex() for digest in good if boot.bank.label in digest)
        boot.object(event, f"{name} is not one of the reference state", expected)


_X509_ONLY: frozenset[object] = frozenset({X509_SIGNATURES})
_KEYS_AND_HASHES: frozenset[object] = frozenset({X509_SIGNATURES, SHA256_SIGNATURES})

_VARIABLES: Mapping[tuple[uuid.UUID, str], Callable[[ExampleReference, UefiVariable], str]] = {
    (GLOBAL_VARIABLE, "SecureBoot"): _secure_boot,
    (GLOBAL_VARIABLE, "PK"): _subset(lambda reference: reference.pk, _X509_ONLY),
    (GLOBAL_VARIABLE, "KEK"): _subset(lambda reference: reference.kek, _X509_ONLY),
    (IMAGE_SECURITY, "db"): _subset(lambda reference: reference.db, _KEYS_AND_HASHES),
    (IMAGE_SECURITY, "vendor_db"): _subset(lambda reference: reference.vendor_db, _KEYS_AND_HASHES),
    (IMAGE_SECURITY, "dbx"): _dbx,
}

_RULES: Mapping[tuple[int, int], Callable[[_Boot, Event], None]] = {
    **{(pcr, EventType.SEPARATOR): _separator for pcr in _SEPARATED_PCRS},
    **{(pcr, EventType.EFI_ACTION): _action for pcr in _ACTIONS},
    (0, EventType.S_CRTM_VERSION): _crtm_version,
    (0, EventType.EFI_PLATFORM_FIRMWARE_BLOB): _firmware_volume,
    (0, EventType.EFI_PLATFORM_FIRMWARE_BLOB2): _firmware_volume,
    (1, EventType.CPU_MICROCODE): _at_most(1),
    (1, EventType.EFI_HANDOFF_TABLES): _at_most(1),
    (1, EventType.EFI_HANDOFF_TABLES2): _at_most(1),
    (1, EventType.EFI_VARIABLE_BOOT): _boot_variable,
    (1, EventType.PLATFORM_CONFIG_FLAGS): _at_most(4),
    (2, EventType.EFI_BOOT_SERVICES_DRIVER): _anything,
    (4, EventType.EFI_BOOT_SERVICES_APPLICATION): _application,
    (5, EventType.EFI_GPT_EVENT): _at_most(1),
    (_SECURE_BOOT_PCR, EventType.EFI_VARIABLE_DRIVER_CONFIG): _configuration,
    (_SECURE_BOOT_PCR, EventType.EFI_VARIABLE_AUTHORITY): _authority,
    (8, EventType.IPL): _grub_text,
    (9, EventType.IPL): _grub_file,
    (14, EventType.IPL): _shim_list,
}
