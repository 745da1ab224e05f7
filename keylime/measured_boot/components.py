"""The reference state of policy `components`: what one boot chain may consist of, with variants of each part.

A component is met by exactly one of its variants, as in systemd-pcrlock. Kernel, initrds and command line are
one component, `boot`, so that blessed boots are never mixed. What a variant does not name must not be there.
"""

import enum
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from keylime.documents.patterns import full_matcher, parse_pattern
from keylime.errors import PolicyError
from keylime.findings.finding import JsonValue
from keylime.measured_boot.boot_reading import Chain
from keylime.measured_boot.example_reference import ExampleReference, GoodFirmware
from keylime.measured_boot.variables import EfiSignature
from keylime.tpm.pcr import PCR_COUNT

WHAT = "reference state for measured boot"
_Hex = Annotated[str, msgspec.Meta(pattern="^(0x)?([0-9a-f][0-9a-f])+$")]
_Digests = list[_Hex]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A member that nobody reads would be a demand that nobody makes."""


class Key(_Strict, frozen=True):
    """A signature of a UEFI list."""

    owner: str = msgspec.field(name="SignatureOwner")
    data: _Hex = msgspec.field(name="SignatureData")


class SecureBoot(_Strict, frozen=True):
    """The switch, and what the variables may hold; `dbx` and `sbat_level` are the least that is revoked."""

    on: bool
    pk: list[Key] = []
    kek: list[Key] = []
    db: list[Key] = []
    dbx: list[Key] = []
    vendor_db: list[Key] = []
    sbat_level: str | None = None


class Shim(_Strict, frozen=True):
    """What shim's own lists in PCR 14 may be."""

    mok_list: list[dict[str, _Hex]] = []
    mok_list_x: list[dict[str, _Hex]] = []


class FirmwareVariant(_Strict, frozen=True):
    """The CRTM version and all other code of PCR 0, in order: digests by bank."""

    crtm_version: dict[str, _Hex] = {}
    code: list[dict[str, _Hex]] = []


class LoaderVariant(_Strict, frozen=True):
    """Images of PCR 4 before the kernel, in order: shim and GRUB, systemd-boot."""

    images: _Digests = []


class BootVariant(_Strict, frozen=True):
    """One boot: kernel, initrds and command line, which belong together."""

    images: _Digests = []
    kernel_files: _Digests = []
    initrd_files: _Digests = []
    command_line: str | None = None
    command_line_pattern: str | None = None
    load_options: _Digests = []
    initrds: _Digests = []
    inputs: _Digests = []
    extensions: _Digests = []
    sections: _Digests = []  # of a unified kernel; without any, whichever its image holds


class Components(_Strict, frozen=True):
    """Variants of each component by name."""

    firmware: dict[str, FirmwareVariant] = {}
    boot_loader: dict[str, LoaderVariant] = msgspec.field(name="boot-loader", default_factory=dict)
    boot: dict[str, BootVariant] = {}


class Grub(_Strict, frozen=True):
    """Commands that count by their whole text, and digests of other files than kernel and initrd."""

    commands: list[str] = []
    files: _Digests = []


class ReferenceStateDocument(_Strict, frozen=True):
    """The reference state as it is written."""

    chain: str
    secure_boot: SecureBoot
    components: Components
    shim: Shim = Shim()
    grub: Grub = Grub()
    drivers: _Digests = []
    firmware_applications: _Digests = []
    other_events: dict[str, _Digests] = {}


@dataclass(frozen=True, slots=True)
class GoodBoot:
    """A blessed boot; digests are SHA-256. Without `command_line` and `matches_line` none may be measured."""

    name: str
    images: tuple[bytes, ...]
    kernel_files: tuple[bytes, ...]
    initrd_files: tuple[bytes, ...]
    command_line: str | None
    matches_line: Callable[[str], bool] | None
    load_options: tuple[bytes, ...]
    initrds: tuple[bytes, ...]
    inputs: tuple[bytes, ...]
    extensions: tuple[bytes, ...]
    sections: tuple[bytes, ...]

    @property
    def files(self) -> tuple[bytes, ...]:
        """What GRUB reads last: the kernel and its initrds."""
        return self.kernel_files + self.initrd_files


@dataclass(frozen=True, slots=True)
class ComponentReference:
    """What machines of one chain may boot."""

    chain: Chain
    common: ExampleReference  # firmware, Secure Boot, shim's lists, further events; no kernels
    loaders: Mapping[str, tuple[bytes, ...]]
    boots: tuple[GoodBoot, ...]
    drivers: frozenset[bytes]
    firmware_applications: frozenset[bytes]
    commands: frozenset[str]
    files: frozenset[bytes]
    sbat_level: int | None


def parse_document(refstate: JsonValue) -> ReferenceStateDocument:
    """The document in `refstate`. Raises PolicyError, which names the member."""
    try:
        document = msgspec.convert(refstate, ReferenceStateDocument)
    except msgspec.ValidationError as error:
        raise PolicyError(f"{WHAT}: {error}{_hint(refstate)}") from error
    if document.chain not in _CHAINS:
        raise PolicyError(f"{WHAT}: chain: {document.chain[:80]!r} is none of {', '.join(sorted(_CHAINS))}")
    return document


def _hint(refstate: JsonValue) -> str:
    is_example = isinstance(refstate, Mapping) and "kernels" in refstate
    return " (it is one of policy `example`, which `components` reads as well)" if is_example else ""


def compile_components(document: ReferenceStateDocument) -> ComponentReference:
    """What `document` demands. Raises PolicyError, which names the member."""
    secure_boot, parts = document.secure_boot, document.components
    return ComponentReference(
        chain=Chain(document.chain),
        common=_common(document),
        loaders={name: to_bytes(variant.images) for name, variant in parts.boot_loader.items()},
        boots=tuple(_good_boot(name, variant) for name, variant in parts.boot.items()),
        drivers=frozenset(to_bytes(document.drivers)),
        firmware_applications=frozenset(to_bytes(document.firmware_applications)),
        commands=frozenset(document.grub.commands),
        files=frozenset(to_bytes(document.grub.files)),
        sbat_level=None if secure_boot.sbat_level is None else _level(secure_boot.sbat_level),
    )


def to_bytes(digests: Iterable[str]) -> tuple[bytes, ...]:
    """Digests with or without the `0x` in front."""
    return tuple(bytes.fromhex(digest.removeprefix("0x")) for digest in digests)


def _common(document: ReferenceStateDocument) -> ExampleReference:
    secure_boot = document.secure_boot
    return ExampleReference(
        has_secureboot=secure_boot.on,
        firmware=tuple(
            GoodFirmware(_by_bank(variant.crtm_version), tuple(_by_bank(code) for code in variant.code))
            for variant in document.components.firmware.values()
        ),
        kernels=(),
        pk=_keys(secure_boot.pk, "pk"),
        kek=_keys(secure_boot.kek, "kek"),
        db=_keys(secure_boot.db, "db"),
        dbx=_keys(secure_boot.dbx, "dbx"),
        vendor_db=_keys(secure_boot.vendor_db, "vendor_db"),
        mok_list=tuple(_by_bank(digest) for digest in document.shim.mok_list),
        mok_list_x=tuple(_by_bank(digest) for digest in document.shim.mok_list_x),
        other_events=_other_events(document),
    )


def _good_boot(name: str, variant: BootVariant) -> GoodBoot:
    where = f"components.boot[{name!r}]"
    if variant.command_line is not None and variant.command_line_pattern is not None:
        raise PolicyError(f"{WHAT}: {where}: has command_line and command_line_pattern, of which one counts")
    pattern = variant.command_line_pattern
    return GoodBoot(
        name=name,
        images=to_bytes(variant.images),
        kernel_files=to_bytes(variant.kernel_files),
        initrd_files=to_bytes(variant.initrd_files),
        command_line=variant.command_line,
        matches_line=None if pattern is None else _matcher(pattern, where),
        load_options=to_bytes(variant.load_options),
        initrds=to_bytes(variant.initrds),
        inputs=to_bytes(variant.inputs),
        extensions=to_bytes(variant.extensions),
        sections=to_bytes(variant.sections),
    )


def _matcher(pattern: str, where: str) -> Callable[[str], bool]:
    try:
        return full_matcher(parse_pattern(pattern))
    except PolicyError as error:
        raise PolicyError(f"{WHAT}: {where}.command_line_pattern: {error}") from error


def _other_events(document: ReferenceStateDocument) -> Mapping[int, frozenset[bytes]]:
    good: dict[int, frozenset[bytes]] = {}
    for name, digests in document.other_events.items():
        if name not in _PCR_NAMES:
            raise PolicyError(f"{WHAT}: other_events: {name[:80]!r} is not a PCR")
        good[int(name)] = frozenset(to_bytes(digests))
    return good


def _by_bank(digests: Mapping[str, str]) -> Mapping[str, bytes]:
    return {bank: bytes.fromhex(value.removeprefix("0x")) for bank, value in digests.items()}


def _keys(keys: Iterable[Key], member: str) -> frozenset[EfiSignature]:
    try:
        return frozenset(EfiSignature(uuid.UUID(key.owner), *to_bytes([key.data])) for key in keys)
    except ValueError as error:
        raise PolicyError(f"{WHAT}: secure_boot.{member}: SignatureOwner is not a GUID") from error


def _level(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_LEVEL):
        raise PolicyError(f"{WHAT}: secure_boot.sbat_level: {text[:80]!r} is not a date of shim's in digits")
    return int(text)


class Part(enum.Enum):
    """What two boots can differ in, in words for people."""

    LOADERS = "boot loader"
    IMAGES = "kernel image"
    KERNEL_FILES = "kernel file"
    INITRD_FILES = "initrd"
    COMMAND_LINE = "command line"
    LOAD_OPTIONS = "load options"
    INITRDS = "initrd that the kernel loaded"
    INPUTS = "input of the stub"
    EXTENSIONS = "extension image"
    SECTIONS = "section of the unified kernel"


_CHAINS = frozenset(chain.value for chain in Chain)
_PCR_NAMES = frozenset(str(index) for index in range(PCR_COUNT))
_MAX_LEVEL = 18
