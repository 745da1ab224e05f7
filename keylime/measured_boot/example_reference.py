"""The reference state of the `example` policy: an operator's JSON document turned into typed values."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec
import re2  # type: ignore[import-untyped]  # it has no stubs

from keylime.appraisal.findings import JsonValue
from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.variables import Signature
from keylime.policy.patterns import compile_expression, re2_options

_Hex = Annotated[str, msgspec.Meta(pattern="^0x([0-9a-f][0-9a-f])+$")]


class Pattern(Protocol):
    """A compiled regular expression."""

    def fullmatch(self, text: str, /) -> object | None:
        """A true value when all of `text` matches."""


class _Key(msgspec.Struct, frozen=True):
    owner: str = msgspec.field(name="SignatureOwner")
    data: _Hex = msgspec.field(name="SignatureData")


class _Firmware(msgspec.Struct, frozen=True):
    scrtm: dict[str, _Hex]
    platform_firmware: list[dict[str, _Hex]]


class _Kernel(msgspec.Struct, frozen=True):
    shim_authcode_sha256: _Hex
    grub_authcode_sha256: _Hex
    initrd_plain_sha256: _Hex
    kernel_cmdline: str
    kernel_authcode_sha256: _Hex | None = None
    vmlinuz_plain_sha256: _Hex | None = None


class _Document(msgspec.Struct, frozen=True):
    """Members that are not named here are ignored."""

    scrtm_and_bios: list[_Firmware]
    kernels: list[_Kernel]
    pk: list[_Key]
    kek: list[_Key]
    db: list[_Key]
    dbx: list[_Key]
    mokdig: list[dict[str, _Hex]]
    mokxdig: list[dict[str, _Hex]]
    vendor_db: list[_Key] = []
    has_secureboot: bool = True


@dataclass(frozen=True, slots=True)
class GoodFirmware:
    """One blessed firmware: digests by algorithm name of its CRTM version and of its volumes, in order."""

    crtm_version: Mapping[str, bytes]
    volumes: tuple[Mapping[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class GoodKernel:
    """One blessed boot chain. Digests are SHA-256; `applications` are accepted sequences of loaded images.

    `kernel_file` is None where the Authenticode digest of the kernel takes its place (Secure Boot).
    """

    applications: tuple[tuple[bytes, ...], ...]
    initrd: bytes
    kernel_file: bytes | None
    command_line: Pattern
    command_line_text: str


@dataclass(frozen=True, slots=True)
class ExampleReference:
    """What machines of one kind may boot; firmware and kernels are alternatives."""

    has_secureboot: bool
    firmware: tuple[GoodFirmware, ...]
    kernels: tuple[GoodKernel, ...]
    pk: frozenset[Signature]
    kek: frozenset[Signature]
    db: frozenset[Signature]
    dbx: frozenset[Signature]
    vendor_db: frozenset[Signature]
    mok_list: tuple[Mapping[str, bytes], ...]
    mok_list_x: tuple[Mapping[str, bytes], ...]


def parse_example_reference(refstate: JsonValue) -> ExampleReference:
    """The reference state in `refstate`. Raises PolicyError, which names the member."""
    try:
        document = msgspec.convert(refstate, _Document)
    except msgspec.ValidationError as error:
        raise PolicyError(f"reference state for measured boot: {error}") from error
    return ExampleReference(
        has_secureboot=document.has_secureboot,
        firmware=tuple(_good_firmware(firmware) for firmware in document.scrtm_and_bios),
        kernels=tuple(
            _good_kernel(kernel, f"kernels[{position}]", document.has_secureboot)
            for position, kernel in enumerate(document.kernels)
        ),
        pk=_keys(document.pk, "pk"),
        kek=_keys(document.kek, "kek"),
        db=_keys(document.db, "db"),
        dbx=_keys(document.dbx, "dbx"),
        vendor_db=_keys(document.vendor_db, "vendor_db"),
        mok_list=tuple(_digest(digest) for digest in document.mokdig),
        mok_list_x=tuple(_digest(digest) for digest in document.mokxdig),
    )


def digest_for(digest: Mapping[str, bytes], bank: HashAlgorithm) -> bytes | None:
    """The digest of one bank, when the reference state lists it."""
    return digest.get(bank.label)


def _good_firmware(firmware: _Firmware) -> GoodFirmware:
    return GoodFirmware(
        _digest(firmware.scrtm), tuple(_digest(volume) for volume in firmware.platform_firmware)
    )


def _good_kernel(kernel: _Kernel, where: str, has_secureboot: bool) -> GoodKernel:
    loaders = (_bytes(kernel.shim_authcode_sha256), _bytes(kernel.grub_authcode_sha256))
    if has_secureboot:
        image = _required(kernel.kernel_authcode_sha256, f"{where}.kernel_authcode_sha256")
        # Some versions of GRUB and shim load, and so measure, the kernel twice.
        applications: tuple[tuple[bytes, ...], ...] = ((*loaders, image), (*loaders, image, image))
        kernel_file = None
    else:
        applications = (loaders,)
        kernel_file = _required(kernel.vmlinuz_plain_sha256, f"{where}.vmlinuz_plain_sha256")
    return GoodKernel(
        applications=applications,
        initrd=_bytes(kernel.initrd_plain_sha256),
        kernel_file=kernel_file,
        command_line=_pattern(kernel.kernel_cmdline, f"{where}.kernel_cmdline"),
        command_line_text=kernel.kernel_cmdline,
    )


def _required(value: str | None, member: str) -> bytes:
    if value is None:
        raise PolicyError(f"reference state for measured boot: {member} is missing")
    return _bytes(value)


def _pattern(text: str, member: str) -> Pattern:
    """Linear-time matching where the expression permits it: the text it meets comes from the machine."""
    try:
        linear: Pattern = re2.compile(text, re2_options())
        return linear
    except re2.error:
        pass
    try:
        return compile_expression(text)
    except PolicyError as error:
        raise PolicyError(f"reference state for measured boot: {member}: {error}") from error


def _keys(keys: Iterable[_Key], member: str) -> frozenset[Signature]:
    try:
        return frozenset(Signature(uuid.UUID(key.owner), _bytes(key.data)) for key in keys)
    except ValueError as error:
        raise PolicyError(
            f"reference state for measured boot: {member}: SignatureOwner is not a GUID"
        ) from error


def _digest(digest: Mapping[str, str]) -> Mapping[str, bytes]:
    return {algorithm: _bytes(value) for algorithm, value in digest.items()}


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))
