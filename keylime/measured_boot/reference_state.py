"""Makes a reference state for the `example` policy from the boot log of a machine known to be good."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import cast

from keylime.errors import MalformedEvidence
from keylime.findings.finding import JsonValue
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.binding import Binding, data_binding
from keylime.measured_boot.boot_chain import BootChain, boot_chain, text_of
from keylime.measured_boot.event_log import Event, EventLog
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import ImageLoad
from keylime.measured_boot.example import Observed, observe
from keylime.measured_boot.example_reference import parse_example_reference
from keylime.measured_boot.variables import EfiSignature, UefiVariable

_BANK = HashAlgorithm.SHA256
_FIRMWARE_APPLICATION = re.compile(r"FvVol\([^)]*\)/FvFile\([^)]*\)")


def create_reference_state(log: EventLog, *, secure_boot: bool | None = None) -> dict[str, JsonValue]:
    """The reference state that `log` satisfies, ready for JSON.

    With `secure_boot` None the log itself says whether Secure Boot is on. Raises MalformedEvidence when the
    log cannot be the base of a reference state: no events, no SHA-256 digests, data that do not hash to
    their digests, or Secure Boot off where it is asked for.
    """
    has_secureboot = demand_usable(log, secure_boot)
    own = firmware_applications(log)
    state: dict[str, JsonValue] = {
        "has_secureboot": has_secureboot,
        "scrtm_and_bios": [],
        **{name: signature_keys(log, variable) for name, variable in _KEY_VARIABLES.items()},
        "vendor_db": vendor_keys(log),
        "mokdig": shim_digests(log, "MokList"),
        "mokxdig": shim_digests(log, "MokListX"),
        "kernels": [_kernel(boot_chain(log.events, {event.digests[_BANK] for event in own}), has_secureboot)],
    }
    observed = observe(parse_example_reference({**state, "other_events": _by_pcr(own)}), log)
    state["scrtm_and_bios"] = [_firmware(observed)]
    others = _by_pcr([*own, *observed.unlisted])
    if others:
        state["other_events"] = others
    return state


def demand_usable(log: EventLog, secure_boot: bool | None) -> bool:
    """Whether a reference state of `log` demands Secure Boot. Raises MalformedEvidence if there is none."""
    if not any(event.is_extended for event in log.events):
        raise MalformedEvidence("boot log has no events")
    if _BANK not in log.algorithms:
        raise MalformedEvidence(
            "boot log has no SHA-256 digests, which reference states are made of: switch the TPM's SHA-256 "
            "bank on (firmware set-up, or tpm2_pcrallocate sha256:all), reboot, and give the log of that boot"
        )
    for event in log.events:
        if event.type_code != EventType.EFI_VARIABLE_AUTHORITY and data_binding(event) is Binding.MISMATCH:
            raise MalformedEvidence(
                f"event {event.number}: data are not what was measured: take the log from the machine again; "
                "if its firmware writes it so, no reference state can rest on it, but policy accept-all and "
                "TPM policies can"
            )
    is_on = secure_boot_is_on(log)
    if secure_boot and not is_on:
        raise MalformedEvidence("Secure Boot is off in this boot log")
    return is_on if secure_boot is None else secure_boot


def missing_proofs(state: Mapping[str, JsonValue]) -> list[str]:
    """What the boot of a reference state leaves unproven, in words for an operator."""
    gaps = []
    for kernel in cast("list[dict[str, JsonValue]]", state["kernels"]):
        if kernel.get("applications_authcode_sha256") == []:
            gaps.append(
                "no image that was started is measured: nothing shows which boot loader or kernel ran"
            )
        if "initrd_plain_sha256" not in kernel:
            gaps.append("no initrd is measured: machines with one of their own cannot be told from others")
        if "kernel_cmdline" not in kernel and "load_options_sha256" not in kernel:
            gaps.append("the kernel's command line is not measured in PCR 8 or 9")
    return gaps


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


def _firmware(observed: Observed) -> dict[str, JsonValue]:
    version = observed.crtm_version
    return {
        "scrtm": {} if version is None else _digest(version),
        "platform_firmware": [_digest(event) for event in observed.firmware_volumes],
    }


def _by_pcr(events: Iterable[Event]) -> dict[str, JsonValue]:
    """Digests of events by PCR, in rising order."""
    digests: dict[int, dict[str, None]] = {}
    for event in events:
        digests.setdefault(event.pcr, {})[_hex(event)] = None
    return {str(pcr): list(digests[pcr]) for pcr in sorted(digests)}


def signature_keys(log: EventLog, name: str) -> list[JsonValue]:
    """What the last variable `name` (pk, kek, db, dbx) holds, as JSON. Raises MalformedEvidence."""
    variables = _configuration(log, name)
    if not variables:
        return []
    try:
        lists = variables[-1].signature_lists()
    except MalformedEvidence as error:
        raise MalformedEvidence(f"variable {variables[-1].name}: {error}") from error
    return [_key(signature) for item in lists for signature in item.signatures]


def vendor_keys(log: EventLog) -> list[JsonValue]:
    """The keys of shim's vendor_db, as JSON."""
    events = [
        event
        for event in _events(log, None, EventType.EFI_VARIABLE_AUTHORITY)
        if data_binding(event) is Binding.BOUND
    ]
    variables = [event.decoded for event in events if isinstance(event.decoded, UefiVariable)]
    vendor = [variable for variable in variables if variable.name.lower() == "vendor_db"]
    return [_key(signature) for variable in vendor for signature in variable.vendor_signatures()]


def shim_digests(log: EventLog, name: str) -> list[JsonValue]:
    """The digests of shim's list `name` in PCR 14, as JSON."""
    return [_digest(event) for event in _events(log, 14, EventType.IPL) if text_of(event) == name]


def _kernel(chain: BootChain, has_secureboot: bool) -> dict[str, JsonValue]:
    """The boot in the members for shim and GRUB, where it is such a boot, else as a list of images."""
    shown = [_shown(digest) for digest in chain.applications]
    kernel: dict[str, JsonValue] = {}
    if chain.has_grub_texts and len(chain.kernel_files) == 1 and len(shown) == (3 if has_secureboot else 2):
        kernel |= {"shim_authcode_sha256": shown[0], "grub_authcode_sha256": shown[1]}
        if has_secureboot:
            kernel["kernel_authcode_sha256"] = shown[2]
    else:
        kernel["applications_authcode_sha256"] = shown
    if "kernel_authcode_sha256" not in kernel and chain.kernel_files:
        kernel["vmlinuz_plain_sha256"] = _one_or_all(chain.kernel_files)
    if chain.initrds:
        kernel["initrd_plain_sha256"] = _one_or_all(chain.initrds)
    if chain.command_lines:
        kernel["kernel_cmdline"] = "|".join(re.escape(line) for line in chain.command_lines)
    if chain.load_options:
        kernel["load_options_sha256"] = [_shown(digest) for digest in chain.load_options]
    return kernel


def firmware_applications(log: EventLog) -> list[Event]:
    """Programs of the maker: out of a firmware volume, or started before the phase of the operating system.

    That is what the log says, and for whoever makes a reference state to look at: they are listed by digest.
    """
    applications = [
        event
        for event in log.events
        if (event.pcr, event.type_code) == (4, EventType.EFI_BOOT_SERVICES_APPLICATION)
    ]
    separators = [event for event in log.events if (event.pcr, event.type_code) == (4, EventType.SEPARATOR)]
    start = separators[0].number if separators else 0
    has_later = any(event.number > start for event in applications)
    own = [
        event
        for event in applications
        if _is_firmware_application(event) or (has_later and event.number < start)
    ]
    return own if len(own) < len(applications) else []


def _is_firmware_application(event: Event) -> bool:
    path = event.decoded.path if isinstance(event.decoded, ImageLoad) else None
    return path is not None and _FIRMWARE_APPLICATION.match(path) is not None


def _one_or_all(digests: Collection[bytes]) -> JsonValue:
    shown = [_shown(digest) for digest in digests]
    return shown[0] if len(shown) == 1 else shown


def _shown(digest: bytes) -> str:
    return f"0x{digest.hex()}"


def _digest(event: Event) -> dict[str, JsonValue]:
    return {_BANK.label: _hex(event)}


def _hex(event: Event) -> str:
    return _shown(event.digests[_BANK])


def _key(signature: EfiSignature) -> dict[str, JsonValue]:
    return {"SignatureOwner": str(signature.owner), "SignatureData": f"0x{signature.data.hex()}"}


_KEY_VARIABLES = {"pk": "pk", "kek": "kek", "db": "db", "dbx": "dbx"}
