"""Makes a reference state for the `example` policy from the boot log of a machine known to be good."""

import re
from collections.abc import Iterator

from keylime.appraisal.findings import JsonValue
from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.binding import KERNEL_COMMAND_LINE, Binding, data_binding
from keylime.measured_boot.event_log import Event, EventLog
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import ImageLoad, Text
from keylime.measured_boot.variables import Signature, UefiVariable

_BANK = HashAlgorithm.SHA256
_FIRMWARE_APPLICATION = re.compile(r"FvVol\([^)]*\)/FvFile\([^)]*\)")


def create_reference_state(log: EventLog, *, secure_boot: bool | None = None) -> dict[str, JsonValue]:
    """The reference state that `log` satisfies, ready for JSON.

    With `secure_boot` None the log itself says whether Secure Boot is on. `kernels` is left out when the
    boot chain is not one of shim, GRUB and kernel. Raises MalformedEvidence when the log cannot be the base
    of a reference state: no events, no SHA-256 digests, data that do not hash to their digests, or Secure
    Boot off where it is asked for.
    """
    if not any(event.is_extended for event in log.events):
        raise MalformedEvidence("boot log has no events")
    if _BANK not in log.algorithms:
        raise MalformedEvidence("boot log has no SHA-256 digests")
    for event in log.events:
        if data_binding(event) is Binding.MISMATCH:
            raise MalformedEvidence(f"event {event.number}: data are not what was measured")
    is_on = secure_boot_is_on(log)
    if secure_boot and not is_on:
        raise MalformedEvidence("Secure Boot is off in this boot log")
    has_secureboot = is_on if secure_boot is None else secure_boot
    state: dict[str, JsonValue] = {
        "has_secureboot": has_secureboot,
        "scrtm_and_bios": [_firmware(log)],
        **{name: _keys(log, variable) for name, variable in _KEY_VARIABLES.items()},
        "vendor_db": _vendor_keys(log),
        "mokdig": _shim_digests(log, "MokList"),
        "mokxdig": _shim_digests(log, "MokListX"),
    }
    kernel = _kernel(log, has_secureboot)
    if kernel is not None:
        state["kernels"] = [kernel]
    return state


def secure_boot_is_on(log: EventLog) -> bool:
    """Whether the last SecureBoot variable of the log is set."""
    states = [variable.is_set for variable in _configuration(log, "secureboot")]
    return bool(states) and states[-1]


def _events(log: EventLog, pcr: int | None, *types: EventType) -> Iterator[Event]:
    return (event for event in log.events if event.type_code in types and pcr in {None, event.pcr})


def _configuration(log: EventLog, name: str) -> list[UefiVariable]:
    events = _events(log, None, EventType.EFI_VARIABLE_DRIVER_CONFIG)
    variables = [event.decoded for event in events if isinstance(event.decoded, UefiVariable)]
    return [variable for variable in variables if variable.name.lower() == name]


def _firmware(log: EventLog) -> dict[str, JsonValue]:
    versions = list(_events(log, None, EventType.S_CRTM_VERSION))
    volumes = _events(log, None, EventType.EFI_PLATFORM_FIRMWARE_BLOB, EventType.EFI_PLATFORM_FIRMWARE_BLOB2)
    return {
        "scrtm": _digest(versions[0]) if versions else {},
        "platform_firmware": [_digest(event) for event in volumes],
    }


def _keys(log: EventLog, name: str) -> list[JsonValue]:
    variables = _configuration(log, name)
    if not variables:
        return []
    try:
        lists = variables[-1].signature_lists()
    except MalformedEvidence as error:
        raise MalformedEvidence(f"variable {variables[-1].name}: {error}") from error
    return [_key(signature) for item in lists for signature in item.signatures]


def _vendor_keys(log: EventLog) -> list[JsonValue]:
    events = _events(log, None, EventType.EFI_VARIABLE_AUTHORITY)
    variables = [event.decoded for event in events if isinstance(event.decoded, UefiVariable)]
    vendor = [variable for variable in variables if variable.name.lower() == "vendor_db"]
    return [_key(signature) for variable in vendor for signature in variable.vendor_signatures()]


def _shim_digests(log: EventLog, name: str) -> list[JsonValue]:
    return [_digest(event) for event in _events(log, 14, EventType.IPL) if _text(event) == name]


def _kernel(log: EventLog, has_secureboot: bool) -> dict[str, JsonValue] | None:
    applications = [
        event
        for event in _events(log, None, EventType.EFI_BOOT_SERVICES_APPLICATION)
        if not _is_firmware_application(event)
    ]
    if len(applications) not in ({3, 4} if has_secureboot else {2}):
        return None
    kernel: dict[str, JsonValue] = {
        "shim_authcode_sha256": _hex(applications[0]),
        "grub_authcode_sha256": _hex(applications[1]),
    }
    if has_secureboot:
        kernel["kernel_authcode_sha256"] = _hex(applications[2])
    files = list(_events(log, 9, EventType.IPL))
    initrd = next((event for event in files if _names_one_of(event, "initrd", "initramfs")), None)
    if initrd is not None:
        kernel["initrd_plain_sha256"] = _hex(initrd)
    vmlinuz = next((event for event in files if _names_one_of(event, "vmlinuz")), None)
    if vmlinuz is not None and not has_secureboot:
        kernel["vmlinuz_plain_sha256"] = _hex(vmlinuz)
    command_lines = [_text(event) for event in _events(log, 8, EventType.IPL)]
    command_line = next((text for text in command_lines if text.startswith(KERNEL_COMMAND_LINE)), None)
    if command_line is not None:
        kernel["kernel_cmdline"] = re.escape(command_line.removeprefix(KERNEL_COMMAND_LINE))
    return kernel


def _is_firmware_application(event: Event) -> bool:
    path = event.decoded.path if isinstance(event.decoded, ImageLoad) else None
    return path is not None and _FIRMWARE_APPLICATION.match(path) is not None


def _names_one_of(event: Event, *parts: str) -> bool:
    return any(part in _text(event) for part in parts)


def _text(event: Event) -> str:
    return event.decoded.text if isinstance(event.decoded, Text) else ""


def _digest(event: Event) -> dict[str, JsonValue]:
    return {_BANK.label: _hex(event)}


def _hex(event: Event) -> str:
    return f"0x{event.digests[_BANK].hex()}"


def _key(signature: Signature) -> dict[str, JsonValue]:
    return {"SignatureOwner": str(signature.owner), "SignatureData": f"0x{signature.data.hex()}"}


_KEY_VARIABLES = {"pk": "pk", "kek": "kek", "db": "db", "dbx": "dbx"}
