"""What a log shows of a boot's loaders, kernel, initrds and command lines, as policy `components` judges it.

Unlike `boot_chain`, nothing here rests on the names beside digests: files of PCR 9 keep their order, in which
GRUB reads the kernel and its initrds last, and texts count only where a digest covers them.
"""

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.binding import GRUB_COMMANDS, KERNEL_COMMAND_LINES, Binding, data_binding
from keylime.measured_boot.boot_chain import INITRD_TAG, LOAD_OPTIONS_TAG, text_of
from keylime.measured_boot.event_log import Event
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import TaggedEvent

BANK = HashAlgorithm.SHA256
FILE_PCR = 9
_TEXT_PCR, _SECTION_PCR, _STUB_PCR, _EXTENSION_PCR = 8, 11, 12, 13
_LOADER_CONFIG_TAG = 0xF5BC582A


class Chain(enum.Enum):
    """Boot chains by what they measure; the values are names of policies."""

    SHIM_GRUB = "shim-grub"
    UKI = "uki"
    SYSTEMD_BOOT = "systemd-boot"
    EFI_STUB = "efi-stub"
    UNMEASURED_LOADER = "unmeasured-loader"


@dataclass(frozen=True, slots=True)
class Reading:
    """Events of the boot in their order, repetitions in a row left out.

    `files` are what GRUB read, `options` and `initrds` what the kernel's EFI stub measured, `inputs` and
    `extensions` what a stub was given from outside its image (PCR 12 and 13) beside the command line.
    `command_lines` are the texts of `lines`, each once; `judged` the numbers of all events that stand here.
    """

    images: tuple[Event, ...]
    files: tuple[Event, ...]
    options: tuple[Event, ...]
    initrds: tuple[Event, ...]
    inputs: tuple[Event, ...]
    extensions: tuple[Event, ...]
    commands: tuple[tuple[str, Event], ...]
    lines: tuple[tuple[str, Event], ...]
    command_lines: tuple[str, ...]
    sections: tuple[Event, ...]
    has_loader_config: bool
    judged: frozenset[int]

    @property
    def texts(self) -> tuple[Event, ...]:
        """The events of commands and lines."""
        return tuple(event for _, event in (*self.commands, *self.lines))

    @property
    def has_grub(self) -> bool:
        """Whether a GRUB measured what it did."""
        return bool(self.commands) or any(text_of(event) != line for line, event in self.lines)

    @property
    def chain(self) -> Chain:
        """Which chain this is: what measures tells it."""
        if self.sections:
            return Chain.UKI
        if self.has_grub:
            return Chain.SHIM_GRUB
        if self.lines and len(self.images) > 1:
            return Chain.SYSTEMD_BOOT
        if self.options or self.initrds:
            return Chain.SYSTEMD_BOOT if len(self.images) > 1 and self.has_loader_config else Chain.EFI_STUB
        return Chain.UNMEASURED_LOADER


def read_boot(events: Iterable[Event], passed_over: Collection[bytes] = ()) -> Reading:
    """The boot in `events`. Images with digests in `passed_over` are the firmware's own programs."""
    found: dict[str, list[Event]] = {part: [] for part in _PARTS}
    commands: list[tuple[str, Event]] = []
    lines: list[tuple[str, Event]] = []
    has_config = False
    for event in events:
        if not event.is_extended or BANK not in event.digests:
            continue
        has_config = has_config or _tag(event) == _LOADER_CONFIG_TAG
        text = _grub_text(event) if event.pcr == _TEXT_PCR else None
        if text is not None:
            (commands if text[0] else lines).append((text[1], event))
        elif line := _stub_line(event):
            lines.append((line, event))
        elif (part := _part(event)) and (part != "images" or event.digests[BANK] not in passed_over):
            found[part].append(event)
    read = [event for part in found.values() for event in part]
    read += [event for _, event in (*commands, *lines)]
    return Reading(
        **{part: _once(found[part]) for part in _PARTS},
        commands=tuple(commands),
        lines=tuple(lines),
        command_lines=tuple(dict.fromkeys(line for line, _ in lines)),
        has_loader_config=has_config,
        judged=frozenset(event.number for event in read),
    )


def digests_of(events: Iterable[Event]) -> tuple[bytes, ...]:
    """The SHA-256 digests of events that have one."""
    return tuple(event.digests[BANK] for event in events)


def stub_text_digest(line: str) -> bytes:
    """What systemd-boot, systemd-stub and the kernel's EFI stub measure of a command line."""
    return BANK.digest(line.encode("utf-16-le") + b"\0\0")


def _grub_text(event: Event) -> tuple[bool, str] | None:
    """Whether it is a command, and its text; None for what is neither command nor command line of GRUB."""
    if event.type_code != EventType.IPL or data_binding(event) is not Binding.BOUND:
        return None
    text = text_of(event)
    for prefixes, is_command in ((GRUB_COMMANDS, True), (KERNEL_COMMAND_LINES, False)):
        for prefix in prefixes:
            if text.startswith(prefix):
                return is_command, text.removeprefix(prefix)
    return None


def _stub_line(event: Event) -> str:
    """The command line given to a stub: in PCR 12, with systemd-boot before 251 in PCR 8."""
    if event.type_code != EventType.IPL or event.data[1:2] != b"\0":
        return ""
    if event.pcr == _TEXT_PCR:
        return text_of(event) if data_binding(event) is Binding.BOUND else ""
    is_proven = event.pcr == _STUB_PCR and event.digests[BANK] == BANK.digest(event.data)
    return text_of(event) if is_proven else ""


def _part(event: Event) -> str:
    if event.type_code == EventType.EVENT_TAG and event.pcr == FILE_PCR:
        return {INITRD_TAG: "initrds", LOAD_OPTIONS_TAG: "options"}.get(_tag(event), "")
    return _PART_OF.get((event.pcr, event.type_code), "")


def _tag(event: Event) -> int:
    return event.decoded.tag if isinstance(event.decoded, TaggedEvent) else 0


def _once(events: Iterable[Event]) -> tuple[Event, ...]:
    kept: list[Event] = []
    for event in events:
        if not kept or kept[-1].digests[BANK] != event.digests[BANK]:
            kept.append(event)
    return tuple(kept)


_PARTS = ("images", "files", "options", "initrds", "inputs", "extensions", "sections")
_PART_OF: Mapping[tuple[int, int], str] = {
    (4, EventType.EFI_BOOT_SERVICES_APPLICATION): "images",
    (FILE_PCR, EventType.IPL): "files",
    (_SECTION_PCR, EventType.IPL): "sections",
    (_STUB_PCR, EventType.IPL): "inputs",
    (_EXTENSION_PCR, EventType.IPL): "extensions",
}
