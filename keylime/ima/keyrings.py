"""Keys that verify IMA file signatures: recognising them, their 32-bit ids, and the keyrings that hold them.

Keyrings come from a runtime policy (`verification-keys`) or are learned from key entries of the measurement
list.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from keylime.documents.strict_json import load_document
from keylime.errors import PolicyError, UnsuitableKey
from keylime.nesting import is_too_deep

VerificationKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey

_MAX_KEY_BYTES = 65536
_PEM_HEADER_WITHIN = 4096  # bytes


@dataclass(frozen=True, slots=True)
class ImaKey:
    """A public key and the id that signatures name it by."""

    key_id: int
    public_key: VerificationKey
    spki: bytes  # DER SubjectPublicKeyInfo

    @property
    def fingerprint(self) -> bytes:
        """Identity of (id, key): SHA-256."""
        return hashlib.sha256(self.key_id.to_bytes(4, "big") + self.spki).digest()


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys in order; the first with a signature's id is the one that must have made it."""

    keys: tuple[ImaKey, ...] = ()
    warnings: tuple[str, ...] = ()  # keys that were left out, and why

    def find(self, key_id: int) -> ImaKey | None:
        """The first key with `key_id`."""
        return next((key for key in self.keys if key.key_id == key_id), None)

    @property
    def fingerprint(self) -> bytes:
        """Equal for keyrings that verify the same signatures."""
        return hashlib.sha256(b"".join(key.fingerprint for key in self.keys)).digest()

    def to_json(self) -> str:
        """The keyring document, as policies hold it; "" for an empty keyring."""
        if not self.keys:
            return ""
        pubkeys = [base64.b64encode(key.spki).decode() for key in self.keys]
        return msgspec.json.encode({"pubkeys": pubkeys, "keyids": [key.key_id for key in self.keys]}).decode()


EMPTY_KEYRING = Keyring()


def recognise_key(data: bytes) -> ImaKey | None:
    """The key that `data` hold, or None when they hold none.

    Tried in this order: certificate, public key, private key (its public half), each as DER and PEM. A PEM
    header is looked for in the first 4096 bytes.
    Raises UnsuitableKey for a key that is neither RSA nor EC.
    """
    # Everything below starts with an ASN.1 SEQUENCE or has a PEM header; most buffers do neither, and cost
    # nothing.
    if not data.startswith(b"\x30") and b"-----BEGIN" not in data[:_PEM_HEADER_WITHIN]:
        return None
    if len(data) > _MAX_KEY_BYTES:
        return None
    for load in (x509.load_der_x509_certificate, x509.load_pem_x509_certificate):
        certificate = _loaded(lambda load=load: load(data))  # type: ignore[misc]
        if isinstance(certificate, x509.Certificate):
            return _from_certificate(certificate)
    loaders: tuple[Callable[[bytes], object], ...] = (
        load_der_public_key,
        load_pem_public_key,
        lambda der: load_der_private_key(der, None),
        lambda pem: load_pem_private_key(pem, None),
    )
    for loader in loaders:
        key = _loaded(lambda loader=loader: loader(data))  # type: ignore[misc]
        if key is not None:
            return _ima_key(
                key.public_key() if isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey) else key
            )
    return None


def parse_keyring(text: str, *, is_stored: bool = False) -> Keyring:
    """A keyring document (`verification-keys`): JSON, possibly encoded twice; "", `null` and `[]` are empty.

    A single key that cannot be used is left out with a warning. Raises PolicyError for anything that is no
    keyring. One that `is_stored` was accepted long ago, perhaps when a member could be given twice.
    """
    document = _document(text, is_stored=is_stored)
    if not document:
        return EMPTY_KEYRING
    try:
        body = msgspec.convert(document, _KeyringDocument)
    except msgspec.ValidationError as error:
        raise PolicyError(f"verification-keys: {error}") from error
    keys: list[ImaKey] = []
    left_out: list[str] = []
    for number, encoded in enumerate(body.pubkeys):
        stated = body.keyids[number] if number < len(body.keyids) else 0
        try:
            key = recognise_key(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError, UnsuitableKey) as error:
            left_out.append(f"verification-keys: pubkeys[{number}] cannot be used: {error}")
            continue
        if key is None:
            left_out.append(f"verification-keys: pubkeys[{number}] is no key")
        else:
            keys.append(with_key_id(key, stated) if stated else key)
    return Keyring(tuple(keys), tuple(left_out))


def keyring_of(blobs: Iterable[bytes]) -> Keyring:
    """The keyring of key files (certificates, keys). Raises PolicyError for a file without a usable one."""
    keys = []
    for number, blob in enumerate(blobs, 1):
        try:
            key = recognise_key(blob)
        except UnsuitableKey as error:
            raise PolicyError(f"key file {number}: {error}") from error
        if key is None:
            raise PolicyError(
                f"key file {number} holds no certificate, public key or unencrypted private key"
            )
        keys.append(key)
    return Keyring(tuple(keys))


def load_spki(spki: bytes, key_id: int) -> ImaKey | None:
    """The key of a stored DER SubjectPublicKeyInfo under its stored id; None when it is damaged."""
    try:
        key = recognise_key(spki)
    except UnsuitableKey:
        return None
    return None if key is None else with_key_id(key, key_id)


def with_key_id(key: ImaKey, key_id: int) -> ImaKey:
    """`key` under another id."""
    return ImaKey(key_id, key.public_key, key.spki)


class _Meta(msgspec.Struct):
    version: int = 1


class _KeyringDocument(msgspec.Struct):
    pubkeys: list[str]
    keyids: list[int]
    meta: _Meta | None = None


def _document(text: str, *, is_stored: bool) -> object:
    if not text.strip():
        return None
    if is_too_deep(text):
        raise PolicyError("verification-keys is nested too deeply")
    try:
        document: object = msgspec.json.decode(text)
        if isinstance(document, str):  # converters have encoded it once more since long ago
            text = document
            document = msgspec.json.decode(text) if text.strip() else None
    except msgspec.DecodeError as error:
        raise PolicyError(f"verification-keys is not JSON: {error}") from error
    return document if is_stored or not document else load_document(text, "verification-keys")


def _loaded(load: Callable[[], object]) -> object | None:
    try:
        return load()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        return None


def _from_certificate(certificate: x509.Certificate) -> ImaKey:
    key = _loaded(certificate.public_key)
    if key is None:
        raise UnsuitableKey("the certificate's key is of no supported type: IMA signatures need RSA or EC")
    identified = _ima_key(key)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return identified
    identifier = extension.value.digest
    stated = int.from_bytes(identifier[-4:], "big") if len(identifier) >= 4 else 0
    return with_key_id(identified, stated) if stated else identified


def _ima_key(key: object) -> ImaKey:
    if isinstance(key, RSAPublicKey):
        material = key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    elif isinstance(key, EllipticCurvePublicKey):
        material = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    else:
        raise UnsuitableKey(
            f"a key of type {type(key).__name__} cannot verify IMA signatures: RSA or EC needed"
        )
    key_id = int.from_bytes(hashlib.sha1(material, usedforsecurity=False).digest()[-4:], "big")
    return ImaKey(key_id, key, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
