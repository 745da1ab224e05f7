"""A tolerant reader of X.509 certificates as TPM vendors write them.

Some EK certificates in the field are BER rather than DER, or are padded by the TPM's NV index.
`read_certificate` takes both: the structure is encoded anew as DER for the parser, while the signed bytes
stay what the vendor signed. Pure.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from keylime.errors import MalformedEvidence

MAX_CERTIFICATE_SIZE = 64 * 1024  # bytes

_PEM = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----([^-]*)-----END ")
_MAX_DEPTH = 32
_CONSTRUCTED = 0x20
_BOOLEAN, _INTEGER, _BIT_STRING, _OCTET_STRING, _OID, _SEQUENCE = 0x01, 0x02, 0x03, 0x04, 0x06, 0x30
_FALSE = b"\x01\x01\x00"
# Some vendors mark the EK as id-RSAES-OAEP; the key is an ordinary RSA key (rsaEncryption, NULL).
_RSAES_OAEP_OID = bytes.fromhex("06092a864886f70d010107")
_RSA_ENCRYPTION = bytes.fromhex("300d06092a864886f70d0101010500")
_PARSER_ERRORS = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class TolerantCertificate:
    """A certificate with the bytes its issuer signed.

    `certificate` is the strict DER form: for reading fields, storing and sending. `normalised` says that the
    input was something else; the signature then counts for `signed_bytes` only.
    """

    certificate: x509.Certificate
    signed_bytes: bytes
    signature: bytes
    normalised: bool


def read_certificate(data: bytes) -> TolerantCertificate:
    """The certificate at the start of `data`, DER or BER, whatever follows. Raises MalformedEvidence."""
    if len(data) > MAX_CERTIFICATE_SIZE:
        raise MalformedEvidence(f"a certificate of more than {MAX_CERTIFICATE_SIZE} bytes")
    outer = _element(data, 0)
    if outer.tag != _SEQUENCE:
        raise MalformedEvidence("not a certificate: no ASN.1 sequence")
    parts = list(_elements(data, outer))
    if len(parts) != 3 or parts[2].tag != _BIT_STRING:
        raise MalformedEvidence("not a certificate: not a sequence of contents, algorithm and signature")
    strict = data[: outer.end]
    try:
        certificate = _parse_strictly(data, parts[0], strict)
    except MalformedEvidence:
        strict = _normalise_certificate(data, parts)
        certificate = _parse_strictly(strict, next(_elements(strict, _element(strict, 0))), strict)
    return TolerantCertificate(
        certificate=certificate,
        signed_bytes=data[parts[0].start : parts[0].end],
        signature=data[parts[2].content : parts[2].content_end][1:],
        normalised=strict != data,
    )


def read_pem_certificates(data: bytes) -> tuple[TolerantCertificate, ...]:
    """All certificates in the PEM text `data`, at least one. Raises MalformedEvidence."""
    blocks = _PEM.findall(data)
    if not blocks:
        raise MalformedEvidence("no PEM certificate")
    try:
        return tuple(read_certificate(base64.b64decode(block)) for block in blocks)
    except binascii.Error as error:
        raise MalformedEvidence("not a certificate: no base64 in the PEM text") from error


def _parse_strictly(data: bytes, contents: "_Element", strict: bytes) -> x509.Certificate:
    serial = _serial_number(data, contents)
    if serial is None or data[serial.content] & 0x80:
        raise MalformedEvidence("not a certificate: no serial number, or a negative one")
    try:
        certificate = x509.load_der_x509_certificate(strict)
        _ = certificate.issuer, certificate.subject, certificate.extensions, certificate.public_key()
        _ = (
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.signature_algorithm_oid,
        )
    except _PARSER_ERRORS as error:
        raise MalformedEvidence(f"not a certificate: {error}") from error
    return certificate


def _serial_number(data: bytes, contents: "_Element") -> "_Element | None":
    """The serial number of the certificate whose signed part is `contents`: its first or second element."""
    for element in list(_elements(data, contents))[:2]:
        if element.tag == _INTEGER and element.content < element.content_end:
            return element
    return None


def _normalise_certificate(data: bytes, parts: "list[_Element]") -> bytes:
    """The certificate made of `parts` in DER. A serial number without its leading zero byte gets one."""
    contents = parts[0]
    serial = _serial_number(data, contents)
    if contents.tag != _SEQUENCE or serial is None:
        raise MalformedEvidence("not a certificate: no serial number")
    fields = []
    for field in _elements(data, contents):
        if field == serial and data[field.content] & 0x80:
            fields.append(_encode(_INTEGER, b"\x00" + data[field.content : field.content_end]))
        else:
            fields.append(_normalise(data, field, 1))
    rest = b"".join(_normalise(data, part, 1) for part in parts[1:])
    return _encode(_SEQUENCE, _encode(_SEQUENCE, b"".join(fields)) + rest)


@dataclass(frozen=True, slots=True)
class _Element:
    """One ASN.1 element of a buffer; `end` is behind the end-of-contents mark of an indefinite length."""

    tag: int
    start: int
    content: int
    content_end: int
    end: int


def _element(data: bytes, start: int, depth: int = 0) -> _Element:
    if depth > _MAX_DEPTH:
        raise MalformedEvidence("not a certificate: ASN.1 nested too deeply")
    if start + 2 > len(data):
        raise MalformedEvidence("not a certificate: ASN.1 element cut short")
    tag, first = data[start], data[start + 1]
    if tag & 0x1F == 0x1F:
        raise MalformedEvidence("not a certificate: ASN.1 tag of several bytes")
    content = start + 2
    if first == 0x80:
        return _indefinite_element(data, tag, start, depth)
    if first < 0x80:
        length = first
    else:
        content += first & 0x7F
        length = int.from_bytes(data[start + 2 : content])
    if content + length > len(data):
        raise MalformedEvidence("not a certificate: ASN.1 element cut short")
    return _Element(tag, start, content, content + length, content + length)


def _indefinite_element(data: bytes, tag: int, start: int, depth: int) -> _Element:
    if not tag & _CONSTRUCTED:
        raise MalformedEvidence("not a certificate: indefinite length of a primitive ASN.1 element")
    position = start + 2
    while data[position : position + 2] != b"\x00\x00":
        position = _element(data, position, depth + 1).end
    return _Element(tag, start, start + 2, position, position + 2)


def _elements(data: bytes, parent: _Element) -> Iterator[_Element]:
    position = parent.content
    while position < parent.content_end:
        element = _element(data, position)
        if element.end > parent.content_end:
            raise MalformedEvidence("not a certificate: ASN.1 element longer than its parent")
        yield element
        position = element.end


def _normalise(data: bytes, element: _Element, depth: int) -> bytes:
    """`element` in DER: definite shortest lengths, shortest integers, canonical booleans, no defaults."""
    if depth > _MAX_DEPTH:
        raise MalformedEvidence("not a certificate: ASN.1 nested too deeply")
    content = data[element.content : element.content_end]
    tag = element.tag
    if tag & _CONSTRUCTED:
        children = list(_elements(data, element))
        parts = [_normalise(data, child, depth + 1) for child in children]
        if tag in (_OCTET_STRING | _CONSTRUCTED, _BIT_STRING | _CONSTRUCTED):
            return _join_string(tag & ~_CONSTRUCTED, [data[c.content : c.content_end] for c in children])
        if tag == _SEQUENCE and parts and parts[0] == _RSAES_OAEP_OID:
            return _RSA_ENCRYPTION
        if tag == _SEQUENCE and _is_extension_with_default(children, parts):
            del parts[1]
        return _encode(tag, b"".join(parts))
    if tag == _INTEGER:
        content = _shortest_integer(content)
    elif tag == _BOOLEAN:
        content = b"\xff" if any(content) else b"\x00"
    elif tag == _BIT_STRING:
        content = _clean_bit_string(content)
    return _encode(tag, content)


def _is_extension_with_default(children: list[_Element], parts: list[bytes]) -> bool:
    return [child.tag for child in children] == [_OID, _BOOLEAN, _OCTET_STRING] and parts[1] == _FALSE


def _join_string(tag: int, pieces: list[bytes]) -> bytes:
    if tag == _BIT_STRING:
        unused = pieces[-1][:1] if pieces else b"\x00"
        return _encode(tag, _clean_bit_string(unused + b"".join(piece[1:] for piece in pieces)))
    return _encode(tag, b"".join(pieces))


def _shortest_integer(content: bytes) -> bytes:
    value = int.from_bytes(content, signed=True)
    return value.to_bytes((value if value >= 0 else ~value).bit_length() // 8 + 1, signed=True)


def _clean_bit_string(content: bytes) -> bytes:
    """Zeroes the unused bits at the end, which DER demands."""
    if len(content) < 2 or not 0 < content[0] < 8:
        return content
    return content[:-1] + bytes([content[-1] & (0xFF << content[0]) & 0xFF])


def _encode(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content
