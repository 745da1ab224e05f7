"""An attestation key in software: signs whatever a test wants to put into a quote, true or false.

A real TPM would refuse most of what the attack tests need (a wrong magic, another selection, a second bank).
Public areas, TPMS_ATTEST and TPMT_SIGNATURE are built from the specification, independently of the parsers.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import PcrValues, encode_pcr_blob
from keylime.tpm.quote import encode_quote

AK_ATTRIBUTES = 0x00050072  # restricted, sign, userWithAuth, sensitiveDataOrigin, fixedParent, fixedTPM
CURVES: Mapping[str, tuple[ec.EllipticCurve, int]] = {
    "ecc256": (ec.SECP256R1(), 0x0003),
    "ecc384": (ec.SECP384R1(), 0x0004),
    "ecc521": (ec.SECP521R1(), 0x0005),
}
HASHES: Mapping[HashAlgorithm, hashes.HashAlgorithm] = {
    HashAlgorithm.SHA1: hashes.SHA1(),  # noqa: S303 - attack tests sign with it
    HashAlgorithm.SHA256: hashes.SHA256(),
    HashAlgorithm.SHA384: hashes.SHA384(),
    HashAlgorithm.SHA512: hashes.SHA512(),
}


def tpm2b(content: bytes) -> bytes:
    """A sized buffer: two bytes of length, then `content`."""
    return struct.pack(">H", len(content)) + content


def rsa_public(
    modulus: bytes,
    *,
    scheme: bytes = b"\x00\x14\x00\x0b",
    attributes: int = AK_ATTRIBUTES,
    name_alg: int = HashAlgorithm.SHA256,
    exponent: int = 0,
    key_bits: int | None = None,
    symmetric: bytes = b"\x00\x10",
) -> bytes:
    """TPM2B_PUBLIC of an RSA key."""
    parameters = (
        symmetric + scheme + struct.pack(">HI", len(modulus) * 8 if key_bits is None else key_bits, exponent)
    )
    area = struct.pack(">HHI", 0x0001, name_alg, attributes) + tpm2b(b"") + parameters + tpm2b(modulus)
    return tpm2b(area)


def ecc_public(
    x: bytes,
    y: bytes,
    curve: int,
    *,
    scheme: bytes = b"\x00\x18\x00\x0b",
    attributes: int = AK_ATTRIBUTES,
    name_alg: int = HashAlgorithm.SHA256,
    symmetric: bytes = b"\x00\x10",
) -> bytes:
    """TPM2B_PUBLIC of an ECC key."""
    parameters = symmetric + scheme + struct.pack(">HH", curve, 0x0010)
    area = struct.pack(">HHI", 0x0023, name_alg, attributes) + tpm2b(b"") + parameters + tpm2b(x) + tpm2b(y)
    return tpm2b(area)


def pcr_selection(bank: int, indices: Sequence[int] | frozenset[int]) -> bytes:
    """TPMS_PCR_SELECTION in canonical form."""
    return struct.pack(">HB", bank, 3) + sum(1 << index for index in indices).to_bytes(3, "little")


def quote_attest(
    *,
    nonce: bytes,
    selections: Sequence[bytes],
    digest: bytes,
    magic: int = 0xFF544347,
    kind: int = 0x8018,
    signer: bytes = b"\x00\x0b" + bytes(32),
    clock: int = 12345,
    reset_count: int = 1,
    restart_count: int = 0,
    safe: int = 1,
    firmware_version: int = 0x2019102300163636,
) -> bytes:
    """TPMS_ATTEST of a quote."""
    head = struct.pack(">IH", magic, kind) + tpm2b(signer) + tpm2b(nonce)
    times = struct.pack(">QIIBQ", clock, reset_count, restart_count, safe, firmware_version)
    return head + times + struct.pack(">I", len(selections)) + b"".join(selections) + tpm2b(digest)


@dataclass(frozen=True)
class SoftwareAk:
    """A key with the public area of a proper AK, whose private half the test holds."""

    private_key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    scheme: SignatureScheme
    hash_algorithm: HashAlgorithm = HashAlgorithm.SHA256
    attributes: int = field(default=AK_ATTRIBUTES)

    @classmethod
    def generate(
        cls, kind: str, scheme: SignatureScheme, hash_algorithm: HashAlgorithm = HashAlgorithm.SHA256
    ) -> "SoftwareAk":
        """A new key of `kind` "rsa2048", "ecc256", ..."""
        if kind in CURVES:
            return cls(ec.generate_private_key(CURVES[kind][0]), scheme, hash_algorithm)
        return cls(rsa.generate_private_key(65537, int(kind.removeprefix("rsa"))), scheme, hash_algorithm)

    @property
    def tpm2b_public(self) -> bytes:
        """The public area as a TPM would give it."""
        scheme = struct.pack(">HH", self.scheme, self.hash_algorithm)
        if isinstance(self.private_key, rsa.RSAPrivateKey):
            modulus = self.private_key.public_key().public_numbers().n
            size = self.private_key.key_size // 8
            return rsa_public(modulus.to_bytes(size, "big"), scheme=scheme, attributes=self.attributes)
        size = (self.private_key.key_size + 7) // 8
        numbers = self.private_key.public_key().public_numbers()
        (curve,) = (number for curve, number in CURVES.values() if curve.name == self.private_key.curve.name)
        x, y = numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")
        return ecc_public(x, y, curve, scheme=scheme, attributes=self.attributes)

    def sign_ecdsa(self, message: bytes) -> tuple[int, int]:
        """The numbers r and s of an ECDSA signature."""
        assert isinstance(self.private_key, ec.EllipticCurvePrivateKey)
        return decode_dss_signature(self.private_key.sign(message, ec.ECDSA(HASHES[self.hash_algorithm])))

    def sign(self, message: bytes, *, salt_length: int | None = None) -> bytes:
        """TPMT_SIGNATURE of `message`; `salt_length` is for RSAPSS, None for the largest that fits."""
        header = struct.pack(">HH", self.scheme, self.hash_algorithm)
        if isinstance(self.private_key, ec.EllipticCurvePrivateKey):
            size = (self.private_key.key_size + 7) // 8
            r, s = self.sign_ecdsa(message)
            return header + tpm2b(r.to_bytes(size, "big")) + tpm2b(s.to_bytes(size, "big"))
        algorithm = HASHES[self.hash_algorithm]
        scheme: padding.AsymmetricPadding = padding.PKCS1v15()
        if self.scheme is SignatureScheme.RSAPSS:
            salt = padding.PSS.MAX_LENGTH if salt_length is None else salt_length
            scheme = padding.PSS(padding.MGF1(algorithm), salt)
        return header + tpm2b(self.private_key.sign(message, scheme, algorithm))

    def quote(self, nonce: bytes, pcrs: PcrValues, **attest_fields: int) -> str:
        """A quote on the wire that attests `pcrs`; `attest_fields` as for `quote_attest` (clock, ...)."""
        attest = quote_attest(
            nonce=nonce,
            selections=[pcr_selection(pcrs.bank, frozenset(pcrs.values))],
            digest=pcrs.digest(self.hash_algorithm),
            **attest_fields,  # type: ignore[arg-type]  # all keywords left over are numbers
        )
        return encode_quote(attest, self.sign(attest), encode_pcr_blob(pcrs))
