"""Whether an event's digests vouch for its data.

A replay proves the digests, never the data beside them. For some event types the digest is taken over the
data, so that it can be recomputed; for the others (an image's Authenticode hash, a file that a boot loader
read) the data are a remark that anyone on the machine can rewrite, and no rule may rest on them alone.
"""

import enum
from collections.abc import Callable, Mapping

from keylime.measured_boot.event_log import Event
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import SEPARATOR_SIZE, Separator, Text
from keylime.measured_boot.replay import is_computable
from keylime.measured_boot.variables import UefiVariable

# GRUB measures the text behind its prefix, without the NUL; Red Hat's 2.02 has prefixes of its own, and
# measures commands with the NUL. PCR 9, where GRUB measures files, has no prefix.
GRUB_COMMANDS = ("grub_cmd: ", "grub_cmd ")
KERNEL_COMMAND_LINES = ("kernel_cmdline: ", "grub_kernel_cmdline ")
MODULE_COMMAND_LINE = "module_cmdline: "
_GRUB_PREFIXES = (*GRUB_COMMANDS, *KERNEL_COMMAND_LINES, MODULE_COMMAND_LINE)
_LOADER_TEXT_PCR = 8


class Binding(enum.Enum):
    """What a recomputed digest says about the data of an event."""

    BOUND = "the digest is that of the data"
    MISMATCH = "the digest should be that of the data, and is not"
    UNBOUND = "the digest is of something else than the data"


def data_binding(event: Event) -> Binding:
    """How the data of `event` relate to its digests: BOUND only if they agree in all banks we can compute."""
    find_images = _MEASURED_IMAGES.get(event.type_code)
    images = find_images(event) if find_images is not None else ()
    if not images:
        return Binding.UNBOUND
    banks = {bank: digest for bank, digest in event.digests.items() if is_computable(bank)}
    for image in images:
        if banks and all(bank.digest(image) == digest for bank, digest in banks.items()):
            return Binding.BOUND
    return Binding.UNBOUND if event.type_code in _SOMETIMES_BOUND else Binding.MISMATCH


def _whole_data(event: Event) -> tuple[bytes, ...]:
    return (event.data,)


def _variable_or_value(event: Event) -> tuple[bytes, ...]:
    """The first profile hashed the structure, many firmwares hash the value; both are in the field."""
    if isinstance(event.decoded, UefiVariable):
        return (event.data, event.decoded.value)
    return (event.data,)


def _padded_separator(event: Event) -> tuple[bytes, ...]:
    """A separator is measured with the padding that is logged, or without it."""
    is_whole = isinstance(event.decoded, Separator)
    return (event.data, event.data[:SEPARATOR_SIZE]) if is_whole else (event.data,)


def _action(event: Event) -> tuple[bytes, ...]:
    """An action is measured without a NUL at its end; some firmware logs one, or measures one beside it."""
    if not isinstance(event.decoded, Text):
        return (event.data,)
    return (event.data, event.data.removesuffix(b"\0"), event.data + b"\0")


def _authority(event: Event) -> tuple[bytes, ...]:
    """Older versions of shim leave the last byte out: the end of a certificate's signature, or a NUL."""
    return (event.data, event.data[:-1])


def _loader_text(event: Event) -> tuple[bytes, ...]:
    """GRUB's texts, and the command line of systemd-boot before 251, logged without its last byte."""
    if event.pcr != _LOADER_TEXT_PCR or not isinstance(event.decoded, Text):
        return ()
    text = event.decoded.text
    prefix = next((prefix for prefix in _GRUB_PREFIXES if text.startswith(prefix)), None)
    if prefix is not None:
        words = event.data[len(prefix) :].removesuffix(b"\0")
        return (words, words + b"\0")
    return (event.data, event.data + b"\0") if b"\0" in event.data[:-1] else ()


# Some makers measure something else than they log. No rule rests on these data.
_SOMETIMES_BOUND = frozenset({EventType.S_CRTM_VERSION})

_MEASURED_IMAGES: Mapping[int, Callable[[Event], tuple[bytes, ...]]] = {
    EventType.SEPARATOR: _padded_separator,
    EventType.ACTION: _action,
    EventType.EFI_ACTION: _action,
    EventType.S_CRTM_VERSION: _whole_data,
    EventType.OMIT_BOOT_DEVICE_EVENTS: _whole_data,
    EventType.EFI_GPT_EVENT: _whole_data,
    EventType.EFI_VARIABLE_DRIVER_CONFIG: _whole_data,
    EventType.EFI_VARIABLE_AUTHORITY: _authority,
    EventType.EFI_VARIABLE_BOOT: _variable_or_value,
    EventType.EFI_VARIABLE_BOOT2: _whole_data,
    EventType.IPL: _loader_text,
}
