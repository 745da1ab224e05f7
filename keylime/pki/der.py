"""A tolerant reader of X.509 certificates as TPM vendors write them.

Some EK certificates in the field are BER rather than DER, or have an NV index's header and padding around
them. `read_certificate` takes all of these: the structure is encoded anew as DER for the parser, while the
signed bytes stay what the vendor signed. Pure.
"""

import base64
import binascii
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from keylime.errors import MalformedEvidence
from keylime.pki.asn1 import (
    BIT_STRING,
    CONSTRUCTED,
    INTEGER,
    OCTET_STRING,
    SEQUENCE,
    Bounds,
    Element,
    Pass,
    headers_in,
)
from keylime.pki.asn1_times import GENERALIZED_TIME, UTC_TIME, strict_time

MAX_CERTIFICATE_SIZE = 8 * 1024  # bytes; of an EK with all that vendors write into it, 2 KiB
MAX_STORED_CERTIFICATE_SIZE = 64 * 1024

_PEM = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----([^-]*)-----END ")
_BOOLEAN, _NULL, _OID = 0x01, 0x05, 0x06
_UTF8_STRING, _PRINTABLE_STRING, _IA5_STRING = 0x0C, 0x13, 0x16
_SET = 0x31
_FALSE = b"\x01\x01\x00"
_VERSION_1 = bytes.fromhex("a003020100")
_MOST_BEFORE = 32  # bytes that an NV index may have before the certificate, such as a TCG_FULL_CERT's header
_PRINTABLE = re.compile(rb"[A-Za-z0-9 '()+,./:=?-]*")
_ECDSA = bytes.fromhex("2a8648ce3d04")  # how the OIDs of its signatures begin
_RSA = bytes.fromhex("2a864886f70d0101")  # and those of RSA keys
_BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")
_NAME_CONSTRAINTS = bytes.fromhex("0603551d1e")
_AUTHORITY_KEY_IDENTIFIER = bytes.fromhex("0603551d23")
_KEY_AFTER_SERIAL = 5  # fields from the serial number to the SubjectPublicKeyInfo
# Some vendors mark the EK as id-RSAES-OAEP; the key is an ordinary RSA key (rsaEncryption, NULL).
_RSAES_OAEP_OID = bytes.fromhex("06092a864886f70d010107")
_RSA_ENCRYPTION = bytes.fromhex("300d06092a864886f70d0101010500")
PARSER_ERRORS = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def unreadable(data: bytes, error: Exception) -> str:
    """Why `data` is no certificate, without the names that the library has for its own parts."""
    if not data.strip():
        return "it is empty"
    said = str(error)
    if not said or "ParseError" in said or "PEM" in said:
        return "neither PEM (BEGIN CERTIFICATE) nor DER, or damaged"
    return said


# Real certificates have 60 to 250 elements, ten deep. Whoever sends more wants to see us work.
STRANGERS = Bounds(MAX_CERTIFICATE_SIZE, elements=640)
OPERATORS = Bounds(MAX_STORED_CERTIFICATE_SIZE, elements=10_000)


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


def read_certificate(data: bytes, bounds: Bounds = STRANGERS) -> TolerantCertificate:
    """The certificate at the start of `data`, DER or BER, whatever follows. Raises MalformedEvidence.

    The work is linear in the size of `data`, and bounded by `bounds` whatever it holds.
    """
    if len(data) > bounds.size:
        raise MalformedEvidence(f"a certificate of more than {bounds.size} bytes")
    whole, data = data, data[header_size(data) :]
    outer = Pass(data, bounds).outermost()
    if outer.tag != SEQUENCE:
        raise MalformedEvidence("not a certificate: no ASN.1 sequence")
    parts = outer.children
    if len(parts) != 3 or parts[2].tag != BIT_STRING:
        raise MalformedEvidence("not a certificate: not a sequence of contents, algorithm and signature")
    serial = _serial_number(data, parts[0])
    is_positive = not data[serial.content] & 0x80
    strict = data[: outer.end]
    try:
        if not is_positive:
            raise MalformedEvidence("not a certificate: a negative serial number")
        certificate = _parse_strictly(strict)
    except MalformedEvidence:
        again = _Normaliser(data, bounds).certificate(parts, serial)
        if again == strict:
            raise
        strict = again
        certificate = _parse_strictly(strict)
    return TolerantCertificate(
        certificate=certificate,
        signed_bytes=data[parts[0].start : parts[0].end],
        signature=data[parts[2].content : parts[2].content_end][1:],
        normalised=strict != whole,
    )


def read_pem_certificates(data: bytes, bounds: Bounds = STRANGERS) -> tuple[TolerantCertificate, ...]:
    """All certificates in the PEM text `data`, at least one. Raises MalformedEvidence."""
    blocks = _PEM.findall(data)
    if not blocks:
        raise MalformedEvidence("no PEM certificate")
    try:
        return tuple(read_certificate(base64.b64decode(block), bounds) for block in blocks)
    except binascii.Error as error:
        raise MalformedEvidence("not a certificate: no base64 in the PEM text") from error


def strict_ecdsa_signature(signature: bytes) -> bytes:
    """An ECDSA signature with its two numbers as DER writes them; what is none comes back as it is."""
    try:
        sequence = Pass(signature, STRANGERS).outermost()
    except MalformedEvidence:
        return signature
    numbers = sequence.children
    if sequence.tag != SEQUENCE or [number.tag for number in numbers] != [INTEGER, INTEGER]:
        return signature
    contents = (_unsigned(signature[number.content : number.content_end]) for number in numbers)
    return _encode(SEQUENCE, b"".join(_encode(INTEGER, content) for content in contents))


def header_size(data: bytes) -> int:
    """How many bytes an NV index has before the certificate: none, or a header's."""
    if data[:1] == b"\x30":
        return 0
    start = data.find(b"\x30\x82", 0, _MOST_BEFORE + 2)
    while start > 0:
        if start + 4 + int.from_bytes(data[start + 2 : start + 4]) <= len(data):
            return start
        start = data.find(b"\x30\x82", start + 1, _MOST_BEFORE + 2)
    return 0


def _parse_strictly(strict: bytes) -> x509.Certificate:
    """The certificate, with all read that the library reads late. Raises MalformedEvidence."""
    try:
        certificate = x509.load_der_x509_certificate(strict)
        _ = certificate.issuer, certificate.subject, certificate.extensions, certificate.public_key()
        _ = (
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.signature_algorithm_oid,
        )
    except PARSER_ERRORS as error:
        raise MalformedEvidence(f"not a certificate: {unreadable(strict, error)}") from error
    return certificate


def _serial_number(data: bytes, contents: Element) -> Element:
    """The serial number of the certificate whose signed part is `contents`: its first or second element."""
    for element in contents.children[:2]:
        if element.tag == INTEGER and element.content < element.content_end:
            return element
    raise MalformedEvidence("not a certificate: no serial number")


class _Normaliser:
    """Encodes elements of `data` anew, in DER."""

    def __init__(self, data: bytes, bounds: Bounds) -> None:
        self._data = data
        self._bounds = bounds
        self._left = bounds.elements  # for what extensions, keys and strings in pieces turn out to hold

    def certificate(self, parts: list[Element], serial: Element) -> bytes:
        """The certificate made of `parts`. A serial number without its leading zero byte gets one.

        Zero becomes one: parsers that refuse it would refuse the certificate for a number that nobody uses.
        """
        contents = parts[0]
        if contents.tag != SEQUENCE:
            raise MalformedEvidence("not a certificate: no serial number")
        at = contents.children.index(serial)
        fields = [self._encode(field) for field in contents.children]
        number = _unsigned(self._content(serial))
        fields[at] = _encode(INTEGER, number if any(number) else b"\x01")
        if at and fields[0] == _VERSION_1:
            fields[0] = b""
        key = at + _KEY_AFTER_SERIAL
        if key < len(fields):
            fields[key] = self._public_key(contents.children[key], fields[key])
        rest = b"".join(self._encode(part) for part in parts[1:])
        return _encode(SEQUENCE, _encode(SEQUENCE, b"".join(fields)) + rest)

    def _content(self, element: Element) -> bytes:
        return self._data[element.content : element.content_end]

    def _encode(self, element: Element, extension: bytes = b"") -> bytes:
        """`element` with definite shortest lengths, shortest integers, SETs in order, no defaults.

        `extension` is the encoded OID of the extension that it is in.
        """
        tag, children = element.tag, element.children
        if tag & CONSTRUCTED:
            if tag in (OCTET_STRING | CONSTRUCTED, BIT_STRING | CONSTRUCTED):
                return self._join(tag & ~CONSTRUCTED, [self._content(child) for child in children])
            parts = [self._encode(child, extension) for child in children]
            return _encode(tag, b"".join(self._canonical(tag, children, parts, extension)))
        return _encode_primitive(tag, self._content(element), extension)

    def _canonical(
        self, tag: int, children: list[Element], parts: list[bytes], extension: bytes
    ) -> list[bytes]:
        """The encoded `parts` of a constructed element as DER wants them."""
        if tag == _SET:
            return sorted(parts)
        if tag != SEQUENCE or not parts:
            return parts
        tags = [child.tag for child in children]
        if parts[0] == _RSAES_OAEP_OID:
            return [_RSA_ENCRYPTION[2:]]
        if tags == [_OID, _NULL] and self._content(children[0]).startswith(_ECDSA):
            return parts[:1]
        if extension == _BASIC_CONSTRAINTS and parts[0] == _FALSE:
            return parts[1:]
        if extension == _NAME_CONSTRAINTS:
            return parts[:1] + [part for part in parts[1:] if part != b"\x80\x01\x00"]
        if not extension and tags[0] == _OID and tags[1:] in ([OCTET_STRING], [_BOOLEAN, OCTET_STRING]):
            value = _encode(OCTET_STRING, self._inside(self._content(children[-1]), parts[0]))
            critical = [part for part in parts[1:-1] if part != _FALSE]
            return [parts[0], *critical, value]
        return parts

    def _inside(self, content: bytes, extension: bytes) -> bytes:
        """The value of an extension anew, or as it is when it is not one ASN.1 element."""
        try:
            inner, value = self._open(content)
        except MalformedEvidence:
            return content
        return content if value.end != len(content) else inner._encode(value, extension)

    def _public_key(self, element: Element, encoded: bytes) -> bytes:
        """A SubjectPublicKeyInfo: an RSA key in it has positive numbers, as short as they can be."""
        if [child.tag for child in element.children] != [SEQUENCE, BIT_STRING]:
            return encoded
        algorithm, bits = element.children
        is_rsa = algorithm.children and self._content(algorithm.children[0]).startswith(_RSA)
        content = self._content(bits)
        if not is_rsa or content[:1] != b"\x00":
            return encoded
        try:
            inner, key = self._open(content[1:])
        except MalformedEvidence:
            return encoded
        if [child.tag for child in key.children] != [INTEGER, INTEGER]:
            return encoded
        numbers = b"".join(_encode(INTEGER, _unsigned(inner._content(child))) for child in key.children)
        key_bits = _encode(BIT_STRING, b"\x00" + _encode(SEQUENCE, numbers))
        return _encode(SEQUENCE, self._encode(algorithm) + key_bits)

    def _open(self, content: bytes) -> tuple["_Normaliser", Element]:
        """What is inside a string, at the expense of what is left."""
        bounds = Bounds(len(content), self._left, self._bounds.depth)
        reader = Pass(content, bounds)
        try:
            element = reader.outermost()
        finally:
            self._left -= reader.count
        return _Normaliser(content, Bounds(len(content), self._left, self._bounds.depth)), element

    def _join(self, tag: int, pieces: list[bytes]) -> bytes:
        if tag == BIT_STRING:
            unused = pieces[-1][:1] if pieces else b"\x00"
            return _encode(tag, _clean_bit_string(unused + b"".join(piece[1:] for piece in pieces)))
        joined = b"".join(pieces)
        self._left -= headers_in(joined, 0, len(joined))
        if self._left < 0:
            raise MalformedEvidence("not a certificate: too many ASN.1 elements")
        return _encode(tag, joined)


def _encode_primitive(tag: int, content: bytes, extension: bytes) -> bytes:
    if tag == INTEGER and content:
        content = _shortest_integer(content)
    elif tag == _BOOLEAN:
        content = b"\xff" if any(content) else b"\x00"
    elif tag == BIT_STRING:
        content = _clean_bit_string(content)
    elif tag in (UTC_TIME, GENERALIZED_TIME):
        tag, content = strict_time(tag, content)
    elif tag == 0x82 and extension == _AUTHORITY_KEY_IDENTIFIER:  # authorityCertSerialNumber
        content = _unsigned(content)
    elif tag in (_UTF8_STRING, _PRINTABLE_STRING, _IA5_STRING) and not _is_text_of(tag, content):
        # No text of its type: Latin-1 is what older tools wrote, and any bytes are that.
        tag, content = _UTF8_STRING, _utf8(content)
    return _encode(tag, content)


def _is_text_of(tag: int, content: bytes) -> bool:
    if tag == _PRINTABLE_STRING:
        return _PRINTABLE.fullmatch(content) is not None
    return content.isascii() or (tag == _UTF8_STRING and _utf8(content) == content)


def _utf8(content: bytes) -> bytes:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1").encode("utf-8")
    return content


def _unsigned(content: bytes) -> bytes:
    """The content of an INTEGER whose first bit is no sign: in the field its zero byte is missing."""
    return _shortest_integer(b"\x00" + content)


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
