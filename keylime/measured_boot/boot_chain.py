"""What a boot started: images, kernel, initrds and command line, as boot loaders and the kernel measure them.

The same reading serves whoever makes a reference state from a log and whoever judges a log by one, so that
a state fits the boot it was made from. Labels (file names, tags) only choose which digests are compared with
which; texts count where a digest covers them. What is measured twice in a row counts once: GRUB and shim
load, and so measure, some files twice.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.binding import GRUB_COMMANDS, KERNEL_COMMAND_LINES, MODULE_COMMAND_LINE
from keylime.measured_boot.event_log import Event
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import TaggedEvent, Text

BANK = HashAlgorithm.SHA256

# The kernel's EFI stub (drivers/firmware/efi/libstub): what it measures into PCR 9.
INITRD_TAG, LOAD_OPTIONS_TAG = 0x8F3B22EC, 0x8F3B22ED

# Files of PCR 9 by name. Red Hat's GRUB 2.02 has words in the place of names.
_UNJUDGED = ("/loader/entries", "/grub")
_KERNELS = ("/vmlinuz", "grub_linuxefi Kernel", "grub_linux Kernel")
_INITRDS = ("/initrd", "/initramfs", "grub_linuxefi Initrd", "grub_initrd Initrd")


@dataclass(frozen=True, slots=True)
class BootChain:
    """SHA-256 digests in the order of the boot, and the kernel's command lines.

    `load_options` are what an EFI stub was given; `others` are events of files and texts of no known kind.
    """

    applications: tuple[bytes, ...]
    kernel_files: tuple[bytes, ...]
    initrds: tuple[bytes, ...]
    load_options: tuple[bytes, ...]
    command_lines: tuple[str, ...]
    has_grub_texts: bool
    others: tuple[Event, ...]


def boot_chain(events: Iterable[Event], passed_over: Collection[bytes] = ()) -> BootChain:
    """The chain that `events` show. Applications with digests in `passed_over` are the firmware's own."""
    events = [event for event in events if event.is_extended and BANK in event.digests]
    applications = [
        event.digests[BANK]
        for event in events
        if (event.pcr, event.type_code) == (4, EventType.EFI_BOOT_SERVICES_APPLICATION)
        and event.digests[BANK] not in passed_over
    ]
    texts = [event for event in events if (event.pcr, event.type_code) == (8, EventType.IPL)]
    lines = [line for event in texts for line in _command_line(event)]
    kernels, initrds, options, others = [], [], [], []
    for event in events:
        match _file_kind(event, lines):
            case "kernel":
                kernels.append(event.digests[BANK])
            case "initrd":
                initrds.append(event.digests[BANK])
            case "options":
                options.append(event.digests[BANK])
            case "other":
                others.append(event)
    return BootChain(
        applications=_once(applications),
        kernel_files=_once(kernels),
        initrds=_once(initrds),
        load_options=() if lines else _once(options),  # a command line says the same, and says what
        command_lines=tuple(dict.fromkeys(lines)),
        has_grub_texts=any(_is_grub_text(text_of(event)) for event in texts),
        others=tuple(others),
    )


def text_of(event: Event) -> str:
    """What a loader says that it measured; empty without a text."""
    return event.decoded.text if isinstance(event.decoded, Text) else ""


def _command_line(event: Event) -> Iterator[str]:
    text = text_of(event)
    prefix = next((prefix for prefix in KERNEL_COMMAND_LINES if text.startswith(prefix)), None)
    if prefix is not None:
        yield text.removeprefix(prefix)
    elif text and event.data[1:2] == b"\0":
        yield text  # of systemd-boot before 251, in UTF-16


def is_known_text(event: Event) -> bool:
    """Whether an event of PCR 8 is a GRUB command or a kernel command line."""
    return text_of(event).startswith(GRUB_COMMANDS) or any(True for _ in _command_line(event))


def _is_grub_text(text: str) -> bool:
    return text.startswith((*GRUB_COMMANDS, *KERNEL_COMMAND_LINES, MODULE_COMMAND_LINE))


def _file_kind(event: Event, lines: Iterable[str]) -> str:
    if event.pcr != 9:
        return ""
    if isinstance(event.decoded, TaggedEvent):
        return {INITRD_TAG: "initrd", LOAD_OPTIONS_TAG: "options"}.get(event.decoded.tag, "other")
    name = text_of(event)
    if event.type_code != EventType.IPL or not name or "\n" in name:
        return "other"
    if any(part in name for part in _UNJUDGED):
        return ""
    if any(part in name for part in _KERNELS) or _is_kernel_of(name, lines):
        return "kernel"
    return "initrd" if any(part in name for part in _INITRDS) else "other"


def _is_kernel_of(name: str, lines: Iterable[str]) -> bool:
    """Whether a command line begins with the path of this file, with or without its device."""
    paths = (line.partition(" ")[0] for line in lines)
    return any(path.startswith(("/", "(")) and name.endswith(path.rpartition(")")[2]) for path in paths)


def _once(digests: Iterable[bytes]) -> tuple[bytes, ...]:
    kept: list[bytes] = []
    for digest in digests:
        if kept[-1:] != [digest]:
            kept.append(digest)
    return tuple(kept)
