"""Makes the reference state of policy `components` from the boot log of a machine known to be good."""

from collections.abc import Iterable

import msgspec

from keylime.errors import MalformedEvidence
from keylime.findings.finding import JsonValue
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.boot_chain import text_of
from keylime.measured_boot.boot_reading import BANK, Chain, Reading, digests_of, read_boot
from keylime.measured_boot.component_rules import RELEVANT_PCRS, judge_boot, sbat_level
from keylime.measured_boot.components import (
    BootVariant,
    Components,
    FirmwareVariant,
    Grub,
    Key,
    LoaderVariant,
    ReferenceStateDocument,
    SecureBoot,
    Shim,
    compile_components,
)
from keylime.measured_boot.event_log import Event, EventLog
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import ImageLoad
from keylime.measured_boot.grub_commands import GrubCommand, grub_command, is_unjudged_file, reads_unseen
from keylime.measured_boot.reference_state import (
    demand_usable,
    firmware_applications,
    shim_digests,
    signature_keys,
    vendor_keys,
)

FIRST = "1"
_NAME_SIZE = 64
_WITH_KERNEL = 3  # images: shim, GRUB, kernel


def learn_components(log: EventLog, *, secure_boot: bool | None = None) -> ReferenceStateDocument:
    """The reference state that `log` satisfies.

    With `secure_boot` None the log itself says whether Secure Boot is on. Raises MalformedEvidence where the
    log cannot be the base of a reference state.
    """
    has_secure_boot = demand_usable(log, secure_boot)
    own = firmware_applications(log)
    reading = read_boot(log.events, {event.digests[BANK] for event in own})
    chain = reading.chain
    start = _start_of_kernel(reading, chain, has_secure_boot=has_secure_boot)
    loaders = [event for event in reading.images if event.number < start]
    kernels = [event for event in reading.images if event.number >= start]
    document = ReferenceStateDocument(
        chain=chain.value,
        secure_boot=_secure_boot(log, on=has_secure_boot),
        components=Components(
            boot_loader={FIRST: LoaderVariant(shown(loaders))},
            boot={_name(reading, kernels): _boot(reading, chain, kernels)},
        ),
        shim=_shim(log),
        grub=_grub(reading, _kernel_at(reading)),
        drivers=list(dict.fromkeys(shown(_drivers(log)))),
        firmware_applications=shown(own),
    )
    return _with_observed(document, log)


def to_json(document: ReferenceStateDocument) -> dict[str, JsonValue]:
    """The document as JSON values."""
    built: dict[str, JsonValue] = msgspec.to_builtins(document)
    return built


def shown(events: Iterable[Event]) -> list[str]:
    """SHA-256 digests as they are written in reference states."""
    return [f"0x{digest.hex()}" for digest in digests_of(events)]


def _with_observed(document: ReferenceStateDocument, log: EventLog) -> ReferenceStateDocument:
    """`document` with the firmware's code, and with events that no rule knows listed by digest."""
    boot = judge_boot(compile_components(document), log, BANK)
    version = boot.crtm_version
    firmware = FirmwareVariant(
        {} if version is None else _by_bank(version), [_by_bank(event) for event in boot.firmware_volumes]
    )
    others: dict[int, dict[str, None]] = {}
    for event in boot.unlisted:
        if event.pcr in RELEVANT_PCRS:
            others.setdefault(event.pcr, {})[f"0x{event.digests[BANK].hex()}"] = None
    return msgspec.structs.replace(
        document,
        components=msgspec.structs.replace(document.components, firmware={FIRST: firmware}),
        other_events={str(pcr): list(others[pcr]) for pcr in sorted(others)},
    )


def _start_of_kernel(reading: Reading, chain: Chain, *, has_secure_boot: bool) -> int:
    """The number of the event from which on images are the kernel's and no longer a boot loader's."""
    images = reading.images
    if not images:
        return 0
    if chain is Chain.UKI:
        before = [event for event in images if event.number < reading.sections[0].number]
        return (before or images)[-1].number
    if chain is Chain.SHIM_GRUB:
        start = min(event.number for event in (*reading.files, *reading.texts))
        if images[-1].number >= start or not has_secure_boot or len(images) < _WITH_KERNEL:
            return start
        return images[-1].number  # the order of events of different PCRs is the maker's matter
    if chain is Chain.UNMEASURED_LOADER and len(images) < _WITH_KERNEL:
        return images[-1].number + 1
    return images[-1].number


def _boot(reading: Reading, chain: Chain, kernels: list[Event]) -> BootVariant:
    lines = reading.command_lines
    if len(lines) > 1:
        raise MalformedEvidence(f"boot log has {len(lines)} command lines: an attempt to boot failed before")
    at = _kernel_at(reading)
    is_uki = chain is Chain.UKI
    return BootVariant(
        images=shown(kernels),
        kernel_files=shown(reading.files[at : at + 1]),
        initrd_files=shown(reading.files[at + 1 :]),
        command_line=lines[0] if lines else None,
        load_options=[] if is_uki or (chain is Chain.SHIM_GRUB and lines) else shown(reading.options),
        initrds=[] if is_uki or reading.files[at + 1 :] else shown(reading.initrds),
        inputs=shown(reading.inputs),
        extensions=shown(reading.extensions),
        sections=shown(reading.sections) if is_uki else [],
    )


def _kernel_at(reading: Reading) -> int:
    """Where the kernel stands in the files that GRUB read: the first one after the last `linux` command.

    Without commands it is the first file with the name that the command line begins with.
    """
    starts = [event for text, event in reading.commands if grub_command(text) is GrubCommand.KERNEL]
    if starts:
        return len([event for event in reading.files if event.number < starts[-1].number])
    if not reading.has_grub or not reading.lines:
        return len(reading.files)
    path = reading.command_lines[-1].partition(" ")[0].rpartition(")")[2]
    named = [at for at, event in enumerate(reading.files) if text_of(event).endswith(path)]
    return named[0] if named else len(reading.files)


def _grub(reading: Reading, kernel_at: int) -> Grub:
    texts = [text for text, _ in reading.commands]
    unseen = reads_unseen(texts, len(reading.files[kernel_at + 1 :]))
    listed = [
        text for at, text in enumerate(texts) if at in unseen or grub_command(text) is GrubCommand.LISTED
    ]
    files = [event for event in reading.files[:kernel_at] if not is_unjudged_file(text_of(event))]
    return Grub(list(dict.fromkeys(listed)), list(dict.fromkeys(shown(files))))


def _name(reading: Reading, kernels: list[Event]) -> str:
    """What people call this boot: the kernel's file or image without what all such names have."""
    line = reading.command_lines[0] if reading.command_lines else ""
    path = line.partition(" ")[0] if line.startswith(("/", "(")) else ""
    if not path and kernels:
        image = kernels[-1].decoded
        path = (image.path or "") if isinstance(image, ImageLoad) else ""
        path = path.rpartition("File(")[2].rstrip(")").replace("\\", "/")
    name = path.rpartition("/")[2].removeprefix("vmlinuz").strip("-.")
    return name[:_NAME_SIZE] if name.isprintable() and name else FIRST


def _secure_boot(log: EventLog, *, on: bool) -> SecureBoot:
    levels = [level for event in log.events if (level := sbat_level(event)) is not None]
    return SecureBoot(
        on=on,
        **{name: _as_keys(signature_keys(log, name)) for name in ("pk", "kek", "db", "dbx")},
        vendor_db=_as_keys(vendor_keys(log)),
        sbat_level=str(min(levels)) if levels else None,
    )


def _shim(log: EventLog) -> Shim:
    lists = {"mok_list": shim_digests(log, "MokList"), "mok_list_x": shim_digests(log, "MokListX")}
    return msgspec.convert(lists, Shim)


def _as_keys(keys: Iterable[JsonValue]) -> list[Key]:
    return msgspec.convert(list(keys), list[Key])


def _drivers(log: EventLog) -> list[Event]:
    return [
        event
        for event in log.events
        if (event.pcr, event.type_code) == (2, EventType.EFI_BOOT_SERVICES_DRIVER) and BANK in event.digests
    ]


def _by_bank(event: Event) -> dict[str, str]:
    return {HashAlgorithm.SHA256.label: f"0x{event.digests[BANK].hex()}"}
