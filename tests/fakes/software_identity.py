"""A TPM's identity without a TPM: EK and AK as keys in memory, and the opening of credentials.

Written from the TPM 2.0 Library specification (Part 1, 24 and Annex B) with `cryptography` alone, so that it
checks what the registrar seals instead of sharing its code.
"""

import base64
import hashlib
import hmac
import struct
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.tpm.keys import SignatureScheme
from tests.fakes.software_ak import SoftwareAk, rsa_public, tpm2b
from tests.fakes.tls_material import Authority

EK_ATTRIBUTES = 0x000300B2  # restricted, decrypt, adminWithPolicy, sensitiveDataOrigin, fixedParent, fixedTPM
_AES_128_CFB = struct.pack(">HHH", 0x0006, 128, 0x0043)
_NULL = b"\x00\x10"


def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _software_ak() -> SoftwareAk:
    return SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)


def name_of(tpm2b_public: bytes) -> bytes:
    """The TPM name of a key whose name algorithm is SHA-256."""
    return b"\x00\x0b" + hashlib.sha256(tpm2b_public[2:]).digest()


@dataclass(frozen=True)
class SoftwareIdentity:
    """What makes one machine: EK, AK, and the opening of credentials that were sealed for both."""

    ek: rsa.RSAPrivateKey = field(default_factory=_rsa_key)
    ak: SoftwareAk = field(default_factory=_software_ak)

    @property
    def ek_public(self) -> bytes:
        """TPM2B_PUBLIC of the EK."""
        modulus = self.ek.public_key().public_numbers().n.to_bytes(256, "big")
        return rsa_public(modulus, scheme=_NULL, attributes=EK_ATTRIBUTES, symmetric=_AES_128_CFB)

    @property
    def ek_pem(self) -> str:
        """The EK as SubjectPublicKeyInfo PEM."""
        return self.ek.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def ek_certificate(self, authority: Authority) -> bytes:
        """A certificate of the EK, DER."""
        return certify(authority, self.ek.public_key(), "EK").public_bytes(Encoding.DER)

    def open(self, blob: bytes) -> bytes:
        """What TPM2_ActivateCredential would give for a credential file. Raises ValueError."""
        magic, version, size = struct.unpack_from(">IIH", blob)
        if (magic, version) != (0xBADCC0DE, 1):
            raise ValueError("not a credential file")
        id_object, rest = blob[10 : 10 + size], blob[10 + size :]
        encrypted_seed = rest[2 : 2 + struct.unpack_from(">H", rest)[0]]
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
        seed = self.ek.decrypt(encrypted_seed, oaep)
        integrity, encrypted = id_object[2:34], id_object[34:]
        name = name_of(self.ak.tpm2b_public)
        hmac_key = _kdfa(seed, b"INTEGRITY", b"", 256)
        if not hmac.compare_digest(hmac.digest(hmac_key, encrypted + name, "sha256"), integrity):
            raise ValueError("the credential is for another key")
        sized = _decrypt_cfb(_kdfa(seed, b"STORAGE", name, 128), encrypted)
        return sized[2 : 2 + struct.unpack_from(">H", sized)[0]]

    def answer(self, blob_base64: str, agent_id: str) -> str:
        """The activation tag for a registrar's reply."""
        secret = self.open(base64.b64decode(blob_base64))
        return hmac.new(base64.b64encode(secret), agent_id.encode(), "sha384").hexdigest()

    def registration(self, **fields: object) -> dict[str, object]:
        """The body of a registration."""
        return {"ek_tpm": b64(self.ek_public), "aik_tpm": b64(self.ak.tpm2b_public), **fields}


def certify(authority: Authority, public_key: rsa.RSAPublicKey, common_name: str) -> x509.Certificate:
    """A certificate of an RSA key by `authority`."""
    sample = authority.issue(common_name).certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(sample.subject)
        .issuer_name(authority.name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(sample.not_valid_before_utc)
        .not_valid_after(sample.not_valid_after_utc)
    )
    return builder.sign(authority.key, hashes.SHA256())


def certify_attest(name: bytes, qualifying: bytes, *, kind: int = 0x8017, magic: int = 0xFF544347) -> bytes:
    """TPMS_ATTEST of TPM2_Certify for the key with this name."""
    head = struct.pack(">IH", magic, kind) + tpm2b(b"\x00\x0b" + bytes(32)) + tpm2b(qualifying)
    return head + struct.pack(">QIIBQ", 1, 1, 0, 1, 1) + tpm2b(name) + tpm2b(b"\x00\x0b" + bytes(32))


def b64(data: bytes) -> str:
    """Base64 text."""
    return base64.b64encode(data).decode()


def _decrypt_cfb(key: bytes, encrypted: bytes) -> bytes:
    """AES-CFB with full blocks and an initial vector of zeros."""
    block_cipher = Cipher(AES(key), ECB()).encryptor()  # noqa: S305  # the mode is made of single blocks
    feedback = [bytes(16), *(encrypted[at : at + 16] for at in range(0, len(encrypted), 16))]
    stream = b"".join(block_cipher.update(block) for block in feedback if len(block) == 16)
    return bytes(one ^ other for one, other in zip(encrypted, stream, strict=False))


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    message = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.digest(key, message, "sha256")[: bits // 8]
