"""IMA templates: an entry's fields, and how each is printed and hashed (kernel: ima_template_lib.c).

A field exists in three forms: the text in the ASCII list, its value, and the bytes it contributes to the
template data, which the template hash and PCR 10 are computed from. All integers are little-endian.
"""

import binascii
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from keylime.errors import MalformedEvidence

# Digest sizes in bytes of the algorithms that IMA may name in a digest field (kernel: hash_info.c). MD4 and
# the 128-bit RIPEMD are left out: no kernel that has a TPM 2.0 driver measures with them.
DIGEST_SIZES = {
    "md5": 16,
    "sha1": 20,
    "rmd160": 20,
    "sha224": 28,
    "sha256": 32,
    "sha384": 48,
    "sha512": 64,
    "sm3": 32,
    "sm3-256": 32,
    "streebog256": 32,
    "streebog512": 64,
    "wp256": 32,
    "wp384": 48,
    "wp512": 64,
    "sha3-256": 32,
    "sha3-384": 48,
    "sha3-512": 64,
}

LEGACY_NAME_SIZE = 256  # the zero-padded name of template `ima`, terminator included
_LEGACY_DIGESTS = {20: "sha1", 16: "md5"}
_VERITY_TYPES = (b"ima", b"verity")


class Field(enum.Enum):
    """The template fields; the value is the kernel's field id."""

    DIGEST = "d"
    NAME = "n"
    DIGEST_NG = "d-ng"
    DIGEST_NGV2 = "d-ngv2"
    NAME_NG = "n-ng"
    SIGNATURE = "sig"
    BUFFER = "buf"
    DIGEST_MODSIG = "d-modsig"
    MODSIG = "modsig"
    EVM_SIGNATURE = "evmsig"
    XATTR_NAMES = "xattrnames"
    XATTR_LENGTHS = "xattrlengths"
    XATTR_VALUES = "xattrvalues"
    UID = "iuid"
    GID = "igid"
    MODE = "imode"


_FILE_DIGEST_FIELDS = (Field.DIGEST, Field.DIGEST_NG, Field.DIGEST_NGV2)
_DIGEST_FIELDS = (*_FILE_DIGEST_FIELDS, Field.DIGEST_MODSIG)
_NAME_FIELDS = (Field.NAME, Field.NAME_NG)
# Fields that may be empty. Editors and web pages take the blank before an empty last field away.
_OPTIONAL_FIELDS = (Field.SIGNATURE, Field.BUFFER, Field.DIGEST_MODSIG, Field.MODSIG)
_INTEGER_SIZES = {Field.UID: 4, Field.GID: 4, Field.MODE: 2}
_MOST_FIELDS = 15  # of a format, to the kernel


@dataclass(frozen=True, slots=True)
class Template:
    """One template: its name in the list, the word for it in failure summaries, and its fields in order."""

    name: str
    mode: str
    fields: tuple[Field, ...]

    @property
    def has_name_last(self) -> bool:
        """Whether the name is the last field, so that blanks in it are unambiguous."""
        return self.fields[-1] in _NAME_FIELDS

    @property
    def is_free(self) -> bool:
        """Whether it is a format that somebody chose, and that the list names in full."""
        return "|" in self.name

    @property
    def has_lengths(self) -> bool:
        """Whether each field comes with its length, as in every template but the oldest."""
        return self.name != "ima"


_NG = (Field.DIGEST_NG, Field.NAME_NG)
_NGV2 = (Field.DIGEST_NGV2, Field.NAME_NG)
TEMPLATES = {
    template.name: template
    for template in (
        Template("ima", "Ima", (Field.DIGEST, Field.NAME)),
        Template("ima-ng", "ImaNg", _NG),
        Template("ima-sig", "ImaSig", (*_NG, Field.SIGNATURE)),
        Template("ima-buf", "ImaBuf", (*_NG, Field.BUFFER)),
        Template("ima-ngv2", "ImaNgV2", _NGV2),
        Template("ima-sigv2", "ImaSigV2", (*_NGV2, Field.SIGNATURE)),
        Template("ima-modsig", "ImaModsig", (*_NG, Field.SIGNATURE, Field.DIGEST_MODSIG, Field.MODSIG)),
        Template(
            "evm-sig",
            "EvmSig",
            (
                *_NG,
                Field.EVM_SIGNATURE,
                Field.XATTR_NAMES,
                Field.XATTR_LENGTHS,
                Field.XATTR_VALUES,
                Field.UID,
                Field.GID,
                Field.MODE,
            ),
        ),
    )
}


_REMEDY = (
    "boot the machine with ima_template=ima-sig (or ima-ng, ima-sigv2, ima-ngv2) on the kernel command line, "
    "instead of another ima_template= or ima_template_fmt="
)


class UnsupportedTemplate(MalformedEvidence):
    """An entry of a template that cannot be read; the text ends with what to boot the machine with."""


@lru_cache(maxsize=64)
def template_named(name: str) -> Template:
    """The template that an entry names: one of the kernel's, or the fields that ima_template_fmt= asks for.

    Nothing vouches for the name that a list gives. So a free format begins like all templates of the kernel,
    with the digest and the name: whatever follows, none can show a field as the digest or the name of a file
    that is another one in the others. Raises UnsupportedTemplate.
    """
    template = TEMPLATES.get(name)
    if template is not None:
        return template
    try:
        fields = tuple(Field(part) for part in name.split("|"))
    except ValueError:
        raise UnsupportedTemplate(
            f"IMA template {_shown(name.encode())} is not supported: {_REMEDY}"
        ) from None
    if not (
        2 <= len(fields) <= _MOST_FIELDS
        and fields[0] in _FILE_DIGEST_FIELDS
        and fields[1] in _NAME_FIELDS
        and len(set(fields)) == len(fields)
    ):
        raise UnsupportedTemplate(
            f"IMA template format {_shown(name.encode())} is not supported, because it does not begin with "
            f"the digest and the name of the file (such as d-ng|n-ng), or has a field twice: {_REMEDY}"
        )
    return Template(name, "ImaFormat", fields)


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A digest field: `kind` is "" or, in the v2 templates, "ima" or "verity"."""

    algorithm: str
    value: bytes
    kind: str = ""


def parse_hex(text: bytes) -> bytes:
    """The bytes of canonical (lower-case) hex. Raises MalformedEvidence."""
    try:
        value = binascii.unhexlify(text)
    except ValueError as error:
        raise MalformedEvidence(f"IMA field {_shown(text)} is not hex") from error
    if text != text.lower():
        # Kernels print lower case. Another spelling of the same bytes would be a second form of one entry.
        raise MalformedEvidence(f"IMA field {_shown(text)} is not lower-case hex")
    return value


def parse_digest(field: Field, text: bytes) -> FileDigest:
    """A digest field as printed. Raises MalformedEvidence, also for a length that does not fit."""
    parts = text.split(b":")
    if field is Field.DIGEST:
        value = parse_hex(text)
        if len(value) not in _LEGACY_DIGESTS:
            raise MalformedEvidence(
                f"IMA digest of {len(value)} bytes: template ima has 20 (SHA-1) or 16 (MD5)"
            )
        return FileDigest(_LEGACY_DIGESTS[len(value)], value)
    kind = b""
    if field is Field.DIGEST_NGV2:
        if parts[0] not in _VERITY_TYPES:
            raise MalformedEvidence(
                f"IMA digest {_shown(text)}: expected ima:<algorithm>:<hex> or verity:..."
            )
        kind = parts.pop(0)
    if len(parts) != 2:
        raise MalformedEvidence(f"IMA digest {_shown(text)}: expected <algorithm>:<hex>")
    return _checked(FileDigest(parts[0].decode("latin-1"), parse_hex(parts[1]), kind.decode()))


def pack_digest(field: Field, digest: FileDigest) -> bytes:
    """What a digest field contributes to the template data."""
    if field is Field.DIGEST:
        return digest.value
    label = f"{digest.kind}:{digest.algorithm}" if field is Field.DIGEST_NGV2 else digest.algorithm
    return _sized(label.encode() + b":\0" + digest.value)


def pack_fields(template: Template, text: bytes) -> bytes:
    """The template data of `text`, an entry's fields in the ASCII list. Raises MalformedEvidence.

    Optional fields that are absent at the end are empty: the template data are the same.
    """
    count = len(template.fields)
    parts = text.split(b" ", count - 1) if template.has_name_last else text.split(b" ")
    absent = template.fields[len(parts) :]
    if len(parts) > count or not set(_OPTIONAL_FIELDS).issuperset(absent):
        raise MalformedEvidence(f"IMA template {template.name} has {count} fields, not {len(parts)}")
    parts.extend(b"" for _ in absent)
    return _packed(template, parts)


def show_fields(template: Template, values: Sequence[bytes]) -> bytes:
    """The fields as the ASCII list prints them; `values` as `unpack_fields` gives them."""
    return b" ".join(_show(field, value) for field, value in zip(template.fields, values, strict=True))


def unpack_fields(template: Template, data: bytes) -> tuple[bytes, ...]:
    """The content of each field in the template data, without length prefixes. Raises MalformedEvidence.

    Strict: no field may be short and nothing may follow the last one.
    """
    values = []
    offset = 0
    for field in template.fields:
        if field is Field.DIGEST and not template.has_lengths:
            # The only fields without a length: the digest is what is left before the 256-byte name.
            size = len(data) - LEGACY_NAME_SIZE
            value, offset = data[:size], size
        elif field is Field.NAME and not template.has_lengths:
            value = data[offset:].rstrip(b"\0")
        else:
            size = int.from_bytes(data[offset : offset + 4], "little")
            value = data[offset + 4 : offset + 4 + size]
            offset += 4 + size
        values.append(value)
    # Whatever is short, left over or has no printed form does not come out as it went in.
    printed = [_show(field, value) for field, value in zip(template.fields, values, strict=True)]
    if _packed(template, printed) != data:
        raise MalformedEvidence(
            f"template data of {len(data)} bytes do not have the layout of {template.name}"
        )
    return tuple(values)


def _packed(template: Template, parts: Sequence[bytes]) -> bytes:
    """The template data of fields as they are printed."""
    if template.has_lengths:
        return b"".join(_pack(field, part) for field, part in zip(template.fields, parts, strict=True))
    digest = parse_digest(Field.DIGEST, parts[0])
    name = _name(parts[1], LEGACY_NAME_SIZE - 1)
    return digest.value + name.ljust(LEGACY_NAME_SIZE, b"\0")


def _pack(field: Field, text: bytes) -> bytes:
    if field is Field.DIGEST:
        return _sized(parse_digest(field, text).value)
    if field is Field.DIGEST_MODSIG and not text:
        return _sized(b"")  # no appended signature
    if field in _DIGEST_FIELDS:
        return pack_digest(field, parse_digest(field, text))
    if field is Field.NAME:
        return _sized(_name(text, LEGACY_NAME_SIZE - 1) + b"\0")
    if field is Field.NAME_NG:
        return _sized(_name(text) + b"\0")
    if field is Field.XATTR_NAMES:
        return _sized(_name(text) + b"\0" if text else b"")
    if field in _INTEGER_SIZES:
        return _sized(_integer(text, _INTEGER_SIZES[field]))
    return _sized(parse_hex(text))


def _show(field: Field, value: bytes) -> bytes:
    if field is Field.DIGEST:
        return value.hex().encode()
    if field in _DIGEST_FIELDS:
        if not value:
            return b""  # no appended signature; any other digest field is refused when it is packed
        label, _, digest = value.partition(b":\0")
        return label + b":" + digest.hex().encode()
    if field in (*_NAME_FIELDS, Field.XATTR_NAMES):
        return value.removesuffix(b"\0")
    if field in _INTEGER_SIZES:
        if len(value) > _INTEGER_SIZES[field]:  # Python refuses to print some thousand digits
            raise MalformedEvidence(
                f"IMA number of {len(value)} bytes: {field.value} has at most {_INTEGER_SIZES[field]}"
            )
        return b"%d" % int.from_bytes(value, "little")
    return value.hex().encode()


def _checked(digest: FileDigest) -> FileDigest:
    size = DIGEST_SIZES.get(digest.algorithm)
    if size is None:
        raise MalformedEvidence(f"IMA digest algorithm {_shown(digest.algorithm.encode())} is not known")
    if len(digest.value) != size:
        raise MalformedEvidence(f"IMA digest of {len(digest.value)} bytes: {digest.algorithm} has {size}")
    return digest


def _name(text: bytes, limit: int | None = None) -> bytes:
    if b"\0" in text:
        raise MalformedEvidence("IMA name holds a NUL byte")
    if limit is not None and len(text) > limit:
        raise MalformedEvidence(f"IMA name of {len(text)} bytes: template ima has at most {limit}")
    return text


def _integer(text: bytes, size: int) -> bytes:
    # int() alone would also take signs, blanks and underscores.
    if not text.isdigit() or len(text) > 10 or (len(text) > 1 and text.startswith(b"0")):
        raise MalformedEvidence(f"IMA field {_shown(text)} is not a decimal number")
    value = int(text)
    if value >= 1 << (8 * size):
        raise MalformedEvidence(f"IMA field {_shown(text)} does not fit into {size} bytes")
    return value.to_bytes(size, "little")


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(4, "little") + value


def _shown(text: bytes) -> str:
    return ascii(text[:40].decode("latin-1"))
