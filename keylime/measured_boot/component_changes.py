"""Changes of a reference state of policy `components`: further variants, of a log or of files, and fewer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.authenticode import authenticode_digest, pe_section
from keylime.measured_boot.boot_reading import Chain, stub_text_digest
from keylime.measured_boot.components import BootVariant, Components, ReferenceStateDocument, SecureBoot

V = TypeVar("V")
T = TypeVar("T")

_BOTH = 2

_BOOT_IMAGE = "BOOT_IMAGE="  # how GRUB passes the path of the kernel on, in /proc/cmdline


@dataclass(frozen=True, slots=True)
class BootFiles:
    """The next boot as files: their contents, and the command line as it will be measured."""

    kernel: bytes
    initrds: tuple[bytes, ...] = ()
    command_line: str | None = None


def merge(
    document: ReferenceStateDocument, other: ReferenceStateDocument, *, new_name: str | None = None
) -> ReferenceStateDocument:
    """What accepts the boots of both, and nothing mixed. Raises PolicyError where one policy cannot.

    Variants that `document` lacks are added; its own keep their names. What must be revoked is what
    both say.
    """
    if document.chain != other.chain:
        raise PolicyError(f"boots by chain {other.chain!r}, the reference state is of {document.chain!r}")
    if document.secure_boot.on != other.secure_boot.on:
        states = {True: "on", False: "off"}
        now, before = states[other.secure_boot.on], states[document.secure_boot.on]
        raise PolicyError(f"has Secure Boot {now}, the reference state has it {before}")
    mine, theirs = document.components, other.components
    boots = dict(theirs.boot)
    if new_name is not None:
        boots = dict.fromkeys([new_name], next(iter(boots.values())))
    return msgspec.structs.replace(
        document,
        secure_boot=_merged_secure_boot(document, other),
        components=Components(
            firmware=_with_variants(mine.firmware, theirs.firmware),
            boot_loader=_with_variants(mine.boot_loader, theirs.boot_loader),
            boot=_with_variants(mine.boot, boots),
        ),
        shim=msgspec.structs.replace(
            document.shim,
            mok_list=_union(document.shim.mok_list, other.shim.mok_list),
            mok_list_x=_union(document.shim.mok_list_x, other.shim.mok_list_x),
        ),
        grub=msgspec.structs.replace(
            document.grub,
            commands=_union(document.grub.commands, other.grub.commands),
            files=_union(document.grub.files, other.grub.files),
        ),
        drivers=_union(document.drivers, other.drivers),
        firmware_applications=_union(document.firmware_applications, other.firmware_applications),
        other_events={
            pcr: _union(document.other_events.get(pcr, []), other.other_events.get(pcr, []))
            for pcr in sorted({*document.other_events, *other.other_events}, key=int)
        },
    )


def add_boot(document: ReferenceStateDocument, files: BootFiles, name: str) -> ReferenceStateDocument:
    """`document` with a boot of `files` as a further variant. Raises PolicyError if they do not suffice."""
    variants = document.components.boot
    if name in variants:
        raise PolicyError(f"boot {name!r} is in the reference state already; give another name")
    if not variants:
        raise PolicyError("the reference state has no boot whose kind the new one could have")
    like = list(variants.values())[-1]
    boot = _boot_of(files, like, Chain(document.chain))
    parts = msgspec.structs.replace(document.components, boot={**variants, name: boot})
    return msgspec.structs.replace(document, components=parts)


def drop_variants(document: ReferenceStateDocument, names: Iterable[str]) -> ReferenceStateDocument:
    """`document` without the boots `names`. Raises PolicyError for unknown names, and if none is left."""
    boots = dict(document.components.boot)
    for name in names:
        if name not in boots:
            raise PolicyError(f"there is no boot {name!r}; there is {', '.join(map(repr, boots)) or 'none'}")
        del boots[name]
    if not boots:
        raise PolicyError("no boot would be left, and every machine be rejected")
    parts = msgspec.structs.replace(document.components, boot=boots)
    return msgspec.structs.replace(document, components=parts)


def _boot_of(files: BootFiles, like: BootVariant, chain: Chain) -> BootVariant:
    """The variant of the new files that measures the same kinds of things as `like`."""
    if chain is Chain.UNMEASURED_LOADER and not like.images:
        raise PolicyError("this boot chain does not measure its kernel: there is nothing to add")
    if like.inputs or like.extensions:
        raise PolicyError("this boot is given addons, credentials or extensions: add it from its log")
    if len(like.images) > 1:
        raise PolicyError("this boot starts several images one after the other: add it from its log")
    has_line = like.command_line is not None or like.command_line_pattern is not None
    line = _command_line(files, like, chain, needed=has_line or bool(like.load_options))
    has_initrds = bool(like.initrd_files or like.initrds)
    if has_initrds and not files.initrds:
        raise PolicyError(
            "the boots of this reference state have an initrd: give that of the new one as well"
        )
    if files.initrds and not has_initrds and chain is not Chain.SHIM_GRUB:
        raise PolicyError("initrds are not measured in this boot chain: a boot with one cannot be told apart")
    in_files = chain is Chain.SHIM_GRUB
    return BootVariant(
        images=[_shown(authenticode_digest(files.kernel))] if like.images else [],
        kernel_files=[_plain(files.kernel)] if like.kernel_files else [],
        initrd_files=_once(_plain(initrd) for initrd in files.initrds) if in_files else [],
        command_line=line if has_line else None,
        load_options=[_shown(stub_text_digest(line or ""))] if like.load_options else [],
        initrds=[_plain(b"".join(files.initrds))] if files.initrds and not in_files else [],
    )


def _command_line(files: BootFiles, like: BootVariant, chain: Chain, *, needed: bool) -> str | None:
    line = files.command_line
    if chain is Chain.UKI and not needed:
        if line is not None or files.initrds:
            raise PolicyError(
                "a unified kernel image holds its command line and initrd: give the image alone"
            )
        if pe_section(files.kernel, ".linux") is None:
            raise PolicyError("the kernel is no unified kernel image: it has no section .linux")
        return None
    if line is None:
        if needed:
            raise PolicyError("the command line is measured in this boot chain: give that of the new boot")
        return None
    line = line.rstrip("\n").removeprefix(_BOOT_IMAGE)
    if chain is Chain.SHIM_GRUB and not line.startswith(("/", "(")):
        example = (like.command_line or "/boot/vmlinuz ...").partition(" ")[0]
        raise PolicyError(
            f"GRUB measures the command line with the path of the kernel in front, such as {example!r}"
        )
    return line


def _merged_secure_boot(document: ReferenceStateDocument, other: ReferenceStateDocument) -> SecureBoot:
    mine, theirs = document.secure_boot, other.secure_boot
    levels = [level for level in (mine.sbat_level, theirs.sbat_level) if level is not None]
    revoked = {(key.owner, key.data) for key in theirs.dbx}
    return msgspec.structs.replace(
        mine,
        **{
            name: _union(getattr(mine, name), getattr(theirs, name))
            for name in ("pk", "kek", "db", "vendor_db")
        },
        dbx=[key for key in mine.dbx if (key.owner, key.data) in revoked],
        sbat_level=min(levels, key=int) if len(levels) == _BOTH else None,
    )


def _with_variants(mine: Mapping[str, V], theirs: Mapping[str, V]) -> dict[str, V]:
    merged = dict(mine)
    for name, variant in theirs.items():
        if variant not in merged.values():
            merged[_free_name(name, merged)] = variant
    return merged


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    if name not in taken:
        return name
    if name.isascii() and name.isdigit():
        return str(next(number for number in range(1, len(taken) + 2) if str(number) not in taken))
    numbered = (f"{name} ({number})" for number in range(2, len(taken) + 3))
    return next(candidate for candidate in numbered if candidate not in taken)


def _union(mine: Sequence[T], theirs: Sequence[T]) -> list[T]:
    return [*mine, *(item for item in theirs if item not in mine)]


def _once(digests: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for digest in digests:
        if kept[-1:] != [digest]:
            kept.append(digest)
    return kept


def _plain(content: bytes) -> str:
    return _shown(HashAlgorithm.SHA256.digest(content))


def _shown(digest: bytes) -> str:
    return f"0x{digest.hex()}"
