"""CA and EK certificates with good signatures over bytes that are not DER, as vendors' are.

What a test may do to them is done to the part that is signed, before it is signed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fakes.hostile_der import encoded

_SIGNED_WITH = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
_CN, _O, _C = "550403", "55040a", "550406"
_VALIDITY = encoded(0x30, encoded(0x17, b"200101000000Z") + encoded(0x18, b"20991231235959Z"))
VENDOR_KEY = ec.generate_private_key(ec.SECP256R1())
EK_KEY = ec.generate_private_key(ec.SECP256R1())


def attribute(oid: str, text: bytes, tag: int = 0x0C) -> bytes:
    """One AttributeTypeAndValue."""
    return encoded(0x30, encoded(0x06, bytes.fromhex(oid)) + encoded(tag, text))


def common_name(text: bytes, tag: int = 0x0C) -> bytes:
    """A name of a CN alone."""
    return name([attribute(_CN, text, tag)])


def name(attributes: Sequence[bytes]) -> bytes:
    """A name of one relative name, whose attributes stay in their order."""
    return encoded(0x30, encoded(0x31, b"".join(attributes)))


ATTRIBUTES = (attribute(_CN, b"A Vendor's CA"), attribute(_O, b"A Vendor"), attribute(_C, b"XX", 0x13))
VENDOR = common_name(b"vendor")


def extension(oid: str, value: bytes, critical: bytes = b"") -> bytes:
    """One Extension; `critical` is the encoded BOOLEAN, if any."""
    return encoded(0x30, encoded(0x06, bytes.fromhex(oid)) + critical + encoded(0x04, value))


CA_FLAG = extension("551d13", encoded(0x30, b"\x01\x01\xff"), b"\x01\x01\xff")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a certificate is made of, each part encoded."""

    subject: bytes = VENDOR
    issuer: bytes = VENDOR
    serial: bytes = b"\x02\x01\x05"
    version: bytes = b"\xa0\x03\x02\x01\x02"
    extensions: tuple[bytes, ...] = ()
    algorithm: bytes = _SIGNED_WITH
    validity: bytes = _VALIDITY


def ca_certificate(parts: Parts) -> bytes:
    """The vendor's own certificate, self-signed."""
    flagged = (*parts.extensions, CA_FLAG)
    return _signed(parts, VENDOR_KEY.public_key(), flagged)


def ek_certificate(parts: Parts) -> bytes:
    """The certificate of `EK_KEY`, signed by the vendor."""
    return _signed(parts, EK_KEY.public_key(), parts.extensions)


def _signed(parts: Parts, key: ec.EllipticCurvePublicKey, extensions: Sequence[bytes]) -> bytes:
    content = parts.version + parts.serial + parts.algorithm + parts.issuer + parts.validity + parts.subject
    content += key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if extensions:
        content += encoded(0xA3, encoded(0x30, b"".join(extensions)))
    signed = encoded(0x30, content)
    signature = VENDOR_KEY.sign(signed, ec.ECDSA(hashes.SHA256()))
    return encoded(0x30, signed + parts.algorithm + encoded(0x03, b"\0" + signature))
