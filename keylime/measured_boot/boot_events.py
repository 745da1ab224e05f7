"""Which events the boot of a PC has, whatever its boot loader, held to one reference state.

Each event must be one that such a boot has (`_RULES`, by PCR and type) or that the reference state lists by
its digest, and its data must hash to its digest where the type's digest covers them. What was started and
loaded is no subject here: `boot_chain` reads that, and the named policies judge it.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.binding import Binding, data_binding
from keylime.measured_boot.boot_chain import is_known_text, text_of
from keylime.measured_boot.event_log import Event
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import Separator, TaggedEvent, Text
from keylime.measured_boot.example_reference import (
    ExampleReference,
    GoodFirmware,
    digest_for,
)
from keylime.measured_boot.policies import Objection
from keylime.measured_boot.variables import (
    GLOBAL_VARIABLE,
    IMAGE_SECURITY,
    SHIM_LOCK,
    EfiSignature,
    SignatureList,
    UefiVariable,
)

_SEPARATED_PCRS = range(8)
_ACPI_DATA = "ACPI DATA"  # tables with addresses and sensor values: another one with each machine
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
            "Calling EFI Application from Boot Option",  # some firmware measures it here
            "Returning from EFI Application from Boot Option",
            "Exit Boot Services Invocation",
            "Exit Boot Services Returned with Failure",
            "Exit Boot Services Returned with Success",
        }
    ),
}

_LOADER_TAGS = frozenset({0xF5BC582A, 0xD5CB7CBC})  # of systemd-boot: its configuration, and SMBIOS
_BOOT_VARIABLES = frozenset({"BootOrder", "BootNext"})
_BY_DB = (IMAGE_SECURITY, "db")

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


@dataclass(slots=True)
class BootEvents:
    """One boot while its log is walked: what was seen, and what speaks against it."""

    reference: ExampleReference
    bank: HashAlgorithm
    objections: list[Objection] = field(default_factory=list)
    counts: Counter[object] = field(default_factory=Counter)
    unlisted: list[Event] = field(default_factory=list)  # not known by the rules, nor by the reference state
    crtm_version: Event | None = None
    firmware_volumes: list[Event] = field(default_factory=list)

    def judge_events(self, events: Iterable[Event]) -> None:
        """Objects to each event that is not one of such a boot."""
        for event in events:
            self._judge_event(event)

    def judge_whole(self) -> None:
        """After the last event: objects to what is missing, and to other firmware."""
        self._judge_separators()
        if self.reference.has_secureboot:
            self._judge_configuration()
        self._judge_firmware()

    def object(self, event: Event, reason: str, expected: tuple[str, ...] = ()) -> None:
        observed = event.digests[self.bank].hex() if self.bank in event.digests else None
        self.objections.append(
            Objection(f"{event.type_name} in PCR {event.pcr}: {reason}", event.number, observed, expected)
        )

    def unexpected(self, event: Event, reason: str) -> None:
        """Objects unless the reference state lists the event by its digest."""
        digest = event.digests.get(HashAlgorithm.SHA256)
        if digest is None or digest not in self.reference.other_events.get(event.pcr, ()):
            self.unlisted.append(event)
            self.object(event, reason)

    def at_most(self, limit: int, event: Event, what: str) -> None:
        self.counts[event.pcr, event.type_code, what] += 1
        if self.counts[event.pcr, event.type_code, what] > limit:
            times = f"{limit} times" if limit > 1 else "once"
            self.unexpected(event, f"{what} more than {times}")

    def is_listed(self, event: Event, good: Mapping[str, bytes]) -> bool:
        """Whether the digest that the quote vouches for is the good one."""
        return event.digests.get(self.bank) == digest_for(good, self.bank) is not None

    def _judge_event(self, event: Event) -> None:
        if not event.is_extended:
            return  # in no PCR, so that anyone could add or drop it; the locality is proven by PCR 0 itself
        rule = _RULES.get((event.pcr, event.type_code))
        if rule is None:
            self.unexpected(event, "not expected")
        elif data_binding(event) is not Binding.MISMATCH:
            rule(self, event)
        elif event.type_code == EventType.EFI_VARIABLE_AUTHORITY:
            # Shims before 15.4 log something else; such an event counts by its digest alone.
            self.unexpected(event, "data are not what was measured")
        else:
            self.object(event, "data are not what was measured")

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
            version = () if self.crtm_version is None else (self.crtm_version,)
            measured = [*version, *self.firmware_volumes]
            observed = " ".join(
                event.digests[self.bank].hex() for event in measured if self.bank in event.digests
            )
            self.objections.append(
                Objection("firmware is none of the reference state", observed=observed or "none")
            )

    def _is_firmware(self, good: GoodFirmware) -> bool:
        version = self.crtm_version
        return (
            (self.is_listed(version, good.crtm_version) if version is not None else not good.crtm_version)
            and len(self.firmware_volumes) == len(good.volumes)
            and all(map(self.is_listed, self.firmware_volumes, good.volumes))
        )


def _anything(boot: BootEvents, event: Event) -> None:
    """Accepts the event, whatever it is."""


def _at_most(limit: int) -> Callable[[BootEvents, Event], None]:
    def rule(boot: BootEvents, event: Event) -> None:
        boot.at_most(limit, event, "occurs")

    return rule


def _separator(boot: BootEvents, event: Event) -> None:
    boot.at_most(1, event, "separator")
    if not isinstance(event.decoded, Separator) or event.decoded.value not in _GOOD_SEPARATORS:
        boot.object(event, "the firmware reports an error")


def _crtm_version(boot: BootEvents, event: Event) -> None:
    if boot.crtm_version is None:
        boot.crtm_version = event
    else:
        boot.firmware_volumes.append(event)


def _firmware_volume(boot: BootEvents, event: Event) -> None:
    boot.firmware_volumes.append(event)


def _post_code(boot: BootEvents, event: Event) -> None:
    if text_of(event) != _ACPI_DATA:
        boot.firmware_volumes.append(event)


def _action(boot: BootEvents, event: Event) -> None:
    if not isinstance(event.decoded, Text) or event.decoded.text not in _ACTIONS[event.pcr]:
        boot.unexpected(event, "unknown action")


def _tagged(boot: BootEvents, event: Event) -> None:
    if not isinstance(event.decoded, TaggedEvent) or event.decoded.tag not in _LOADER_TAGS:
        boot.unexpected(event, "not expected")


def _boot_variable(boot: BootEvents, event: Event) -> None:
    variable = event.decoded
    if not isinstance(variable, UefiVariable) or variable.guid != GLOBAL_VARIABLE:
        boot.unexpected(event, "not a boot variable")
    elif variable.name not in _BOOT_VARIABLES and not variable.is_boot_option:
        boot.unexpected(event, f"variable {variable.name!r} is not expected")


def _configuration(boot: BootEvents, event: Event) -> None:
    """SecureBoot, PK, KEK, db, dbx and vendor_db, before the separator: later ones can be anybody's."""
    variable = event.decoded
    if not isinstance(variable, UefiVariable):
        boot.object(event, "not a variable")
        return
    judge = _VARIABLES.get((variable.guid, variable.name))
    if judge is None:
        boot.unexpected(event, f"variable {variable.name!r} is not expected")
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
    listed: Callable[[ExampleReference], frozenset[EfiSignature]],
) -> Callable[[ExampleReference, UefiVariable], str]:
    """The variable's keys must be among those listed, of whatever type: their bytes tell them apart."""

    def judge(reference: ExampleReference, variable: UefiVariable) -> str:
        good = listed(reference)
        if not reference.has_secureboot and not (good and variable.value):
            return ""
        lists = _signature_lists(variable)
        if not lists:
            return "has no signature list"
        unknown = {signature for item in lists for signature in item.signatures} - good
        return f"has {len(unknown)} keys that the reference state does not list" if unknown else ""

    return judge


def _dbx(reference: ExampleReference, variable: UefiVariable) -> str:
    """The variable must revoke at least what is listed; it may be empty where nothing is."""
    if not reference.dbx:
        return ""
    lists = _signature_lists(variable)
    if lists is None:
        return "has no signature lists"
    revoked = {signature for item in lists for signature in item.signatures}
    missing = reference.dbx - revoked
    return f"lacks {len(missing)} hashes of the reference state" if missing else ""


def _signature_lists(variable: UefiVariable) -> tuple[SignatureList, ...] | None:
    try:
        return variable.signature_lists()
    except MalformedEvidence:
        return None


def _authority(boot: BootEvents, event: Event) -> None:
    variable = event.decoded
    if not isinstance(variable, UefiVariable):
        boot.object(event, "not a variable")
        return
    key = (variable.guid, variable.name)
    if key != _BY_DB:  # which both the firmware and shim may name
        boot.at_most(1, event, f"{variable.guid} {variable.name!r}")
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
        boot.unexpected(event, f"variable {variable.name!r} is not expected")


def _loader_text(boot: BootEvents, event: Event) -> None:
    if not is_known_text(event):
        boot.unexpected(event, "neither a GRUB command nor a kernel command line")


def _shim_list(boot: BootEvents, event: Event) -> None:
    name = text_of(event)
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
            boot.unexpected(event, f"{name!r} is not expected")
            return
    if not any(boot.is_listed(event, digest) for digest in good):
        expected = tuple(digest[boot.bank.label].hex() for digest in good if boot.bank.label in digest)
        boot.object(event, f"{name} is not one of the reference state", expected)


_VARIABLES: Mapping[tuple[uuid.UUID, str], Callable[[ExampleReference, UefiVariable], str]] = {
    (GLOBAL_VARIABLE, "SecureBoot"): _secure_boot,
    (GLOBAL_VARIABLE, "PK"): _subset(lambda reference: reference.pk),
    (GLOBAL_VARIABLE, "KEK"): _subset(lambda reference: reference.kek),
    (IMAGE_SECURITY, "db"): _subset(lambda reference: reference.db),
    (IMAGE_SECURITY, "vendor_db"): _subset(lambda reference: reference.vendor_db),
    (IMAGE_SECURITY, "dbx"): _dbx,
}

_RULES: Mapping[tuple[int, int], Callable[[BootEvents, Event], None]] = {
    **{(pcr, EventType.SEPARATOR): _separator for pcr in _SEPARATED_PCRS},
    **{(pcr, EventType.EFI_ACTION): _action for pcr in _ACTIONS},
    # Firmware: code, held to the reference state in its order; what describes the machine is its own matter.
    (0, EventType.S_CRTM_VERSION): _crtm_version,
    (0, EventType.S_CRTM_CONTENTS): _firmware_volume,
    (0, EventType.EFI_PLATFORM_FIRMWARE_BLOB): _firmware_volume,
    (0, EventType.EFI_PLATFORM_FIRMWARE_BLOB2): _firmware_volume,
    (0, EventType.POST_CODE): _post_code,
    (0, EventType.POST_CODE2): _firmware_volume,
    (0, EventType.NONHOST_CODE): _firmware_volume,
    (0, EventType.NONHOST_INFO): _anything,
    # Configuration: tables, serial numbers, boot options and settings.
    (1, EventType.CPU_MICROCODE): _at_most(1),
    (1, EventType.EFI_HANDOFF_TABLES): _at_most(1),
    (1, EventType.EFI_HANDOFF_TABLES2): _at_most(1),
    (1, EventType.EFI_VARIABLE_BOOT): _boot_variable,
    (1, EventType.EFI_VARIABLE_DRIVER_CONFIG): _anything,
    (1, EventType.PLATFORM_CONFIG_FLAGS): _at_most(4),
    (1, EventType.TABLE_OF_DEVICES): _anything,
    (1, EventType.EVENT_TAG): _tagged,
    (2, EventType.EFI_BOOT_SERVICES_DRIVER): _anything,
    (4, EventType.EFI_BOOT_SERVICES_APPLICATION): _anything,  # judged as part of the boot chain
    (5, EventType.EFI_GPT_EVENT): _at_most(1),
    (5, EventType.EFI_VARIABLE_BOOT): _boot_variable,
    (5, EventType.EVENT_TAG): _tagged,
    (6, EventType.COMPACT_HASH): _anything,
    (_SECURE_BOOT_PCR, EventType.EFI_VARIABLE_DRIVER_CONFIG): _configuration,
    (_SECURE_BOOT_PCR, EventType.EFI_VARIABLE_AUTHORITY): _authority,
    (8, EventType.IPL): _loader_text,
    (9, EventType.IPL): _anything,  # judged as part of the boot chain
    (9, EventType.EVENT_TAG): _anything,
    (14, EventType.IPL): _shim_list,
}
