"""Which of the certificates in a TPM's NV memory belongs to an EK.

A choice, not a check: registrar and tenant check what they are sent. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.errors import MalformedEvidence, UnsuitableKey
from keylime.pki.der import header_size
from keylime.tpm.keys import parse_endorsement_key

_MAX_ITEMS = 64  # certificates; a chain has a handful


@dataclass(frozen=True, slots=True)
class EkCertificates:
    """What NV memory says about an EK, all DER: the certificate of that very key, and the chain above it."""

    certificate: bytes | None
    chain: tuple[bytes, ...] = ()


def choose_certificates(tpm2b_public: bytes, stored: Iterable[bytes], chain: bytes) -> EkCertificates:
    """The certificate of the EK among the contents of NV indices, with `chain`, nearest issuer first.

    `chain` is what the chain indices hold, joined: one certificate may span two of them. The profile stores
    the root first.
    """
    try:
        key = _key_bytes(tpm2b_public)
    except (MalformedEvidence, UnsuitableKey):
        return EkCertificates(None)
    for content in stored:
        # The bytes of the key are looked for, not a parsed certificate: those of manufacturers are not always
        # strict DER, and some name RSAES-OAEP as the type of their key.
        for certificate in der_items(content[header_size(content) :])[:1]:
            if key in certificate:
                return EkCertificates(certificate, tuple(reversed(der_items(chain))))
    return EkCertificates(None)


def der_items(data: bytes) -> list[bytes]:
    """The DER SEQUENCEs that follow each other in `data`; what comes after them is an NV index's padding."""
    items: list[bytes] = []
    start = 0
    while len(items) < _MAX_ITEMS and len(data) - start >= 4 and data[start] == 0x30:
        octets = data[start + 1] & 0x7F if data[start + 1] & 0x80 else 0
        content = start + 2 + octets
        length = int.from_bytes(data[start + 2 : content], "big") if octets else data[start + 1]
        end = content + length
        if octets > 3 or end > len(data):
            break
        items.append(data[start:end])
        start = end
    return items


def _key_bytes(tpm2b_public: bytes) -> bytes:
    """The part of a certificate that is the key itself, however it is encoded."""
    public = parse_endorsement_key(tpm2b_public).public_key
    if isinstance(public, RSAPublicKey):
        modulus = public.public_numbers().n
        return modulus.to_bytes((modulus.bit_length() + 7) // 8)
    return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
