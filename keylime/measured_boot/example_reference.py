"""The reference state of the `example` policy: an operator's JSON document turned into typed values."""

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec
import re2  # type: ignore[import-untyped]  # it has no stubs

from keylime.documents.patterns import compile_expression, re2_options
from keylime.errors import PolicyError
from keylime.findings.finding import JsonValue
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.variables import EfiSignature
from keylime.tpm.pcr import PCR_COUNT

_HEX = re.compile("0x([0-9a-f][0-9a-f])+")
_Hex = Annotated[str, msgspec.Meta(pattern=f"^{_HEX.pattern}$")]


class CompiledPattern(Protocol):
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
    """Either shim and GRUB, and what they start, or `applications`: all images of another chain, in order.

    An absent member means that nothing of its kind is expected.
    """

    shim_authcode_sha256: _Hex | None = None
    grub_authcode_sha256: _Hex | None = None
    kernel_authcode_sha256: _Hex | None = None
    applications_authcode_sha256: list[_Hex] | None = None
    # Checked later: msgspec 0.22 frees the type of such a union with constraints twice.
    vmlinuz_plain_sha256: str | list[str] | None = None
    initrd_plain_sha256: str | list[str] | None = None
    kernel_cmdline: str | None = None
    load_options_sha256: list[_Hex] = []


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
    other_events: dict[str, list[_Hex]] = {}


@dataclass(frozen=True, slots=True)
class GoodFirmware:
    """One blessed firmware: digests by algorithm name of its CRTM version and of its volumes, in order."""

    crtm_version: Mapping[str, bytes]
    volumes: tuple[Mapping[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class GoodKernel:
    """One blessed boot chain. Digests are SHA-256; `applications` are the loaded images in order.

    `kernel_file` is None where one file of any content is expected, because the Authenticode digest of the
    kernel takes its place (Secure Boot), and empty where none is. `command_line` is None for no such line.
    """

    applications: tuple[bytes, ...]
    initrds: tuple[bytes, ...]
    kernel_file: tuple[bytes, ...] | None
    command_line: CompiledPattern | None
    command_line_text: str | None
    load_options: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ExampleReference:
    """What machines of one kind may boot; firmware and kernels are alternatives."""

    has_secureboot: bool
    firmware: tuple[GoodFirmware, ...]
    kernels: tuple[GoodKernel, ...]
    pk: frozenset[EfiSignature]
    kek: frozenset[EfiSignature]
    db: frozenset[EfiSignature]
    dbx: frozenset[EfiSignature]
    vendor_db: frozenset[EfiSignature]
    mok_list: tuple[Mapping[str, bytes], ...]
    mok_list_x: tuple[Mapping[str, bytes], ...]
    other_events: Mapping[int, frozenset[bytes]]
    """SHA-256 digests, by PCR, of events that this kind of machine has beside those that the rules know."""


def parse_example_reference(refstate: JsonValue) -> ExampleReference:
    """The reference state in `refstate`. Raises PolicyError, which names the member."""
    try:
        document = msgspec.convert(refstate, _Document)
    except msgspec.ValidationError as error:
        hint = "; it is one of policy `components`" if _is_of_components(refstate) else ""
        raise PolicyError(f"reference state for measured boot: {error}{hint}") from error
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
        other_events=_other_events(document.other_events),
    )


def _is_of_components(refstate: JsonValue) -> bool:
    return isinstance(refstate, Mapping) and "components" in refstate


def digest_for(digest: Mapping[str, bytes], bank: HashAlgorithm) -> bytes | None:
    """The digest of one bank, when the reference state lists it."""
    return digest.get(bank.label)


def _good_firmware(firmware: _Firmware) -> GoodFirmware:
    return GoodFirmware(
        _digest(firmware.scrtm), tuple(_digest(volume) for volume in firmware.platform_firmware)
    )


def _good_kernel(kernel: _Kernel, where: str, has_secureboot: bool) -> GoodKernel:
    kernel_file: tuple[bytes, ...] | None
    if kernel.applications_authcode_sha256 is not None:
        applications = _all_bytes(kernel.applications_authcode_sha256)
        kernel_file = _files(kernel.vmlinuz_plain_sha256, f"{where}.vmlinuz_plain_sha256")
    else:
        loaders = tuple(
            _required(value, f"{where}.{name}")
            for name, value in (
                ("shim_authcode_sha256", kernel.shim_authcode_sha256),
                ("grub_authcode_sha256", kernel.grub_authcode_sha256),
            )
        )
        if has_secureboot:
            image = _required(kernel.kernel_authcode_sha256, f"{where}.kernel_authcode_sha256")
            applications, kernel_file = (*loaders, image), None
        else:
            applications = loaders
            kernel_file = _files(kernel.vmlinuz_plain_sha256, f"{where}.vmlinuz_plain_sha256")
            if not kernel_file:
                raise _missing(f"{where}.vmlinuz_plain_sha256")
    text = kernel.kernel_cmdline
    return GoodKernel(
        applications=applications,
        initrds=_files(kernel.initrd_plain_sha256, f"{where}.initrd_plain_sha256"),
        kernel_file=kernel_file,
        command_line=None if text is None else _pattern(text, f"{where}.kernel_cmdline"),
        command_line_text=text,
        load_options=_all_bytes(kernel.load_options_sha256),
    )


def _other_events(events: Mapping[str, Iterable[str]]) -> Mapping[int, frozenset[bytes]]:
    good = {}
    for name, digests in events.items():
        if name not in _PCR_NAMES:
            raise PolicyError(f"reference state for measured boot: other_events: {name!r} is not a PCR")
        good[int(name)] = frozenset(_all_bytes(digests))
    return good


def _required(value: str | None, member: str) -> bytes:
    if value is None:
        raise _missing(member)
    return _bytes(value)


def _missing(member: str) -> PolicyError:
    return PolicyError(f"reference state for measured boot: {member} is missing")


def _pattern(text: str, member: str) -> CompiledPattern:
    """Linear-time matching where the expression permits it: the text it meets comes from the machine."""
    try:
        linear: CompiledPattern = re2.compile(text, re2_options())
        return linear
    except re2.error:
        pass
    try:
        return compile_expression(text)
    except PolicyError as error:
        raise PolicyError(f"reference state for measured boot: {member}: {error}") from error


def _keys(keys: Iterable[_Key], member: str) -> frozenset[EfiSignature]:
    try:
        return frozenset(EfiSignature(uuid.UUID(key.owner), _bytes(key.data)) for key in keys)
    except ValueError as error:
        raise PolicyError(
            f"reference state for measured boot: {member}: SignatureOwner is not a GUID"
        ) from error


def _digest(digest: Mapping[str, str]) -> Mapping[str, bytes]:
    return {algorithm: _bytes(value) for algorithm, value in digest.items()}


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))


def _all_bytes(values: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(_bytes(value) for value in values)


def _files(values: str | list[str] | None, member: str) -> tuple[bytes, ...]:
    """One digest, several, or none."""
    digests = [values] if isinstance(values, str) else values or []
    for digest in digests:
        if not _HEX.fullmatch(digest):
            raise PolicyError(f"reference state for measured boot: {member}: {digest[:80]!r} is not a digest")
    return _all_bytes(digests)


_PCR_NAMES = frozenset(str(index) for index in range(PCR_COUNT))
