"""The IMA measurement list: ASCII lines and binary records to typed entries, and back.

Judging entries is left to `keylime.ima.rules`, adding them up to PCR 10 to `keylime.ima.replay`.
"""

from binascii import unhexlify
from typing import TypeAlias

import msgspec

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.ima.names import has_escapes, name_bytes, name_text
from keylime.ima.templates import (
    DIGEST_SIZES,
    LEGACY_NAME_SIZE,
    TEMPLATES,
    Field,
    FileDigest,
    Template,
    UnsupportedTemplate,
    pack_fields,
    parse_digest,
    parse_hex,
    show_fields,
    template_named,
    unpack_fields,
)

BOOT_AGGREGATE = "boot_aggregate"
_MAX_PCR = 23
_TEMPLATE_HASHES = {
    algorithm.size: algorithm
    for algorithm in (HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512)
}


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One measurement. A Struct and not a dataclass, because a verifier makes very many of them.

    `template_hash` is the digest column as stated; whether it is right is for the appraisal to find out.
    `template_data` are the bytes that are hashed. `signature` and `buffer` are None where the template has no
    such field, and empty where the field is empty. `digest_kind` is "", "ima" or "verity". `name` is the text
    that stands for the name's bytes, see `keylime.ima.names`.
    """

    pcr: int
    template_hash: bytes
    template: str
    template_data: bytes
    digest_algorithm: str
    digest: bytes
    name: str
    signature: bytes | None = None
    buffer: bytes | None = None
    digest_kind: str = ""

    @property
    def is_violation(self) -> bool:
        """Whether the template hash is all zero: the kernel cannot vouch for the content."""
        return not any(self.template_hash)

    @property
    def mode(self) -> str:
        """The word for the template in failure summaries: "ImaNg"."""
        return template_named(self.template).mode

    def to_line(self) -> bytes:
        """The line of the ASCII list, without its newline."""
        template = template_named(self.template)
        fields = show_fields(template, unpack_fields(template, self.template_data))
        return b"%2d %s %s %s" % (self.pcr, self.template_hash.hex().encode(), self.template.encode(), fields)

    def to_record(self) -> bytes:
        """The record of the binary list."""
        head = self.pcr.to_bytes(4, "little") + self.template_hash + _sized(self.template.encode())
        if template_named(self.template).has_lengths:
            return head + _sized(self.template_data)
        return head + self.digest + _sized(name_bytes(self.name.encode()))


def split_lines(text: bytes) -> list[bytes]:
    """The lines of an ASCII list by index, without newlines.

    Only newlines separate and only newlines are stripped: a trailing blank is the mark of an empty last
    field. Blank lines in the middle keep their index; at the end there are none.
    """
    return text.rstrip(b"\n").split(b"\n") if text else []


# The commonest entries, told by what stands between the template hash and the hex of the file digest:
# template, whether it has a signature, algorithm, hex digits of the digest, and the start of the d-ng field.
_COMMON = {
    f" {template} {algorithm}:".encode(): (
        template,
        template == "ima-sig",
        algorithm,
        2 * size,
        (len(algorithm) + 2 + size).to_bytes(4, "little") + algorithm.encode() + b":\0",
    )
    for template in ("ima-ng", "ima-sig")
    for algorithm, size in DIGEST_SIZES.items()
}
_HASH_ENDS = (3 + 40, 3 + 64)  # where a SHA-1 or SHA-256 template hash ends
_BLANK = ord(" ")
_SIZES = [size.to_bytes(4, "little") for size in range(4200)]  # covers every path that a kernel can print

CommonFields: TypeAlias = tuple[bytes, str, bytes, str, bytes, str, bytes | None]


def common_fields(line: bytes) -> CommonFields | None:
    """The fields of an `ima-ng` or `ima-sig` entry of PCR 10, in the order of `Entry` after the PCR.

    None for every other line, and for whatever is unusual about one: then `parse_line_by_fields` tells what
    it is, or what is wrong with it. Apart because nearly all lines that a verifier ever sees are of this
    form.
    """
    try:
        start = line.index(b":") + 1
        hash_end = _HASH_ENDS[0]
        shape = _COMMON.get(line[hash_end:start])
        if shape is None:
            hash_end = _HASH_ENDS[1]
            shape = _COMMON[line[hash_end:start]]
        template, is_signed, algorithm, digits, prefix = shape
        end = start + digits
        # The kernel prints hex in lower case; one look at everything before the path.
        if line[end] != _BLANK or not line.startswith(b"10 ") or not line[:end].islower():
            return None
        path = line[end + 1 :]
        signature = None
        tail = b""
        if is_signed:
            path, blank, signature_hex = path.partition(b" ")
            signature, tail = b"", _SIZES[0]
            if signature_hex:
                signature = unhexlify(signature_hex)
                tail = len(signature).to_bytes(4, "little") + signature
            if not blank or signature_hex != signature_hex.lower():
                return None
        if b"\0" in path or path.endswith(b"\r") or has_escapes(path):
            return None
        digest = unhexlify(line[start:end])
        data = b"".join((prefix, digest, _SIZES[len(path) + 1], path, b"\0", tail))
        return unhexlify(line[3:hash_end]), template, data, algorithm, digest, path.decode(), signature
    except (ValueError, KeyError, IndexError):
        return None


def parse_line(line: bytes) -> Entry:
    """The entry that one line of the ASCII list states.

    Raises MalformedEvidence, which names a template that is not known.
    """
    fields = common_fields(line)
    return parse_line_by_fields(line) if fields is None else Entry(10, *fields)


def parse_line_by_fields(line: bytes) -> Entry:
    """As `parse_line`, for every template, field by field. Raises MalformedEvidence.

    A line that can be read in several ways is what its template hash says; the plain reading where that says
    nothing.
    """
    readings = _readings(line)
    if len(readings) == 1:
        return _read_line(line)
    entries, failures = [], []
    for reading in readings:
        try:
            entries.append(_read_line(reading))
        except MalformedEvidence as error:
            failures.append(error)
    if not entries:
        raise failures[0]
    if entries[0].is_violation:  # which has no hash that would tell
        return _read_line(line.removesuffix(b"\r"))
    return next(filter(is_hash_right, entries), entries[0])


def _readings(line: bytes) -> list[bytes]:
    """What a line may mean: itself, without the CR of a file from another system, with its escapes undone."""
    readings = [line]
    if line.endswith(b"\r"):
        readings.append(line[:-1])
    if has_escapes(line):
        readings.extend([name_bytes(reading) for reading in readings])
    return readings


def is_hash_right(entry: Entry) -> bool:
    """Whether the template hash is that of the fields, by the algorithm that it has the length of."""
    return _TEMPLATE_HASHES[len(entry.template_hash)].digest(entry.template_data) == entry.template_hash


def _read_line(line: bytes) -> Entry:
    parts = line.split(b" ", 3)
    if len(parts) != 4:
        raise MalformedEvidence(
            "IMA line with fewer than four parts: expected PCR, template hash, template and fields"
        )
    pcr, column, name, fields = parts
    # The kernel prints one digit with a leading blank, which leaves an empty first part. IMA has no
    # business there.
    if len(pcr) != 2 or not pcr.isdigit() or pcr.startswith(b"0") or int(pcr) > _MAX_PCR:
        raise MalformedEvidence(
            f"IMA line: {pcr[:20].decode('latin-1')!a} is not a PCR from 10 to {_MAX_PCR}"
        )
    template = template_named(name.decode("latin-1"))
    template_hash = parse_hex(column)
    if len(template_hash) not in _TEMPLATE_HASHES:
        raise MalformedEvidence(
            f"IMA line: a template hash of {len(template_hash)} bytes is of no known algorithm"
        )
    return _entry(int(pcr), template_hash, template, pack_fields(template, fields))


def parse_binary_list(data: bytes, hash_size: int = 20) -> list[Entry]:
    """The entries of a `binary_runtime_measurements` file with template hashes of `hash_size` bytes.

    Raises MalformedEvidence for anything but whole records of known templates.
    """
    entries = []
    offset = 0
    while offset < len(data):
        entry, offset = _record(data, offset, hash_size)
        entries.append(entry)
    return entries


def ima_ng_line(digest: FileDigest, name: str, *, template_hash: HashAlgorithm = HashAlgorithm.SHA1) -> bytes:
    """The ASCII line that a kernel would add for a file: template `ima-ng`, PCR 10."""
    template = TEMPLATES["ima-ng"]
    fields = f"{digest.algorithm}:{digest.value.hex()} {name.replace(' ', '_')}".encode()
    column = template_hash.digest(pack_fields(template, fields))
    return b"10 %s ima-ng %s" % (column.hex().encode(), fields)


def violation_line(name: str, algorithm: str = "sha256", *, hash_size: int = 20) -> bytes:
    """The ASCII line of a violation: digest and template hash all zero (template `ima-ng`)."""
    zeros = "00" * DIGEST_SIZES[algorithm]
    return f"10 {'00' * hash_size} ima-ng {algorithm}:{zeros} {name.replace(' ', '_')}".encode()


def _entry(pcr: int, template_hash: bytes, template: Template, data: bytes) -> Entry:
    values = dict(zip(template.fields, unpack_fields(template, data), strict=True))
    digest_field, name_field = template.fields[:2]
    digest = _digest(digest_field, values[digest_field])
    buffer = values.get(Field.BUFFER)
    if template.is_free and not buffer:
        buffer = None  # of a file: all entries have the fields of the format
    return Entry(
        pcr,
        template_hash,
        template.name,
        data,
        digest.algorithm,
        digest.value,
        name_text(values[name_field].removesuffix(b"\0")),
        values.get(Field.SIGNATURE),
        buffer,
        digest.kind,
    )


def _digest(field: Field, value: bytes) -> FileDigest:
    if field is Field.DIGEST:
        return parse_digest(field, value.hex().encode())
    label, _, raw = value.partition(b":\0")
    return parse_digest(field, label + b":" + raw.hex().encode())


def _record(data: bytes, start: int, hash_size: int) -> tuple[Entry, int]:
    pcr, offset = int.from_bytes(_take(data, start, 4), "little"), start + 4
    template_hash, offset = _take(data, offset, hash_size), offset + hash_size
    name, offset = _take_sized(data, offset)
    if pcr > _MAX_PCR:
        raise MalformedEvidence(
            f"IMA record at byte {start}: template {name[:40].decode('latin-1')!a}, PCR {pcr}"
        )
    try:
        template = template_named(name.decode("latin-1"))
    except UnsupportedTemplate as error:
        raise UnsupportedTemplate(f"IMA record at byte {start}: {error}") from error
    if not template.has_lengths:
        digest, offset = _take(data, offset, 20), offset + 20
        path, offset = _take_sized(data, offset)
        if b"\0" in path:  # it would be lost in the padding
            raise MalformedEvidence(f"IMA record at byte {start}: its name holds a NUL byte")
        fields = digest + path.ljust(LEGACY_NAME_SIZE, b"\0")
    else:
        fields, offset = _take_sized(data, offset)
    return _entry(pcr, template_hash, template, fields), offset


def _take(data: bytes, offset: int, size: int) -> bytes:
    piece = data[offset : offset + size]
    if len(piece) != size:
        raise MalformedEvidence(
            f"binary IMA list ends within the record at byte {offset}: {size} bytes expected"
        )
    return piece


def _take_sized(data: bytes, offset: int) -> tuple[bytes, int]:
    size = int.from_bytes(_take(data, offset, 4), "little")
    return _take(data, offset + 4, size), offset + 4 + size


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(4, "little") + value
