"""What a reference state of policy `components` cannot demand of a boot, in words for an operator."""

from collections.abc import Iterator

import msgspec

from keylime.measured_boot.boot_reading import Chain
from keylime.measured_boot.components import ReferenceStateDocument

_WORDS = {
    "images": "kernel image in PCR 4",
    "kernel_files": "kernel file in PCR 9",
    "initrd_files": "initrd of GRUB",
    "command_line": "command line",
    "load_options": "load options in PCR 9",
    "initrds": "initrd that the kernel measured",
    "inputs": "addon or credential in PCR 12",
    "extensions": "extension image in PCR 13",
}


def unproven(document: ReferenceStateDocument) -> list[str]:
    """What the boots of `document` leave unproven, each said once."""
    return list(dict.fromkeys(_gaps(document)))


def not_expected(document: ReferenceStateDocument) -> list[str]:
    """For each boot the members that it does not have: of their kind nothing may be measured."""
    found = []
    for name, variant in document.components.boot.items():
        present = msgspec.to_builtins(variant)
        absent = [word for member, word in _WORDS.items() if member not in present]
        if "command_line_pattern" in present:
            absent.remove(_WORDS["command_line"])
        if absent:
            found.append(f"boot {name!r} has no {', '.join(absent)}: none is expected")
    return found


def _gaps(document: ReferenceStateDocument) -> Iterator[str]:
    chain = Chain(document.chain)
    loaders = document.components.boot_loader.values()
    for boot in document.components.boot.values():
        if not boot.images and not any(variant.images for variant in loaders):
            yield "no image that was started is measured: nothing shows which boot loader or kernel ran"
        if chain is Chain.UNMEASURED_LOADER:
            yield (
                "the boot loader measures neither initrd nor command line (SeaBIOS, or a GRUB without its "
                "module tpm): nothing can be demanded of them, and nothing ties an IMA list to this boot"
            )
            continue
        if chain in {Chain.SYSTEMD_BOOT, Chain.EFI_STUB} and not boot.initrds:
            yield (
                "no initrd is measured (Linux before 5.18 measures none): machines with one of their own "
                "cannot be told from others"
            )
        has_line = boot.command_line or boot.command_line_pattern or boot.load_options
        if chain is not Chain.UKI and not has_line:
            yield "the kernel's command line is not measured"
        if chain is Chain.SHIM_GRUB and not (boot.images or boot.kernel_files):
            yield "the kernel is measured neither as an image nor as a file"
    if not document.secure_boot.on:
        yield "Secure Boot is not demanded: neither are its keys and revocations"
