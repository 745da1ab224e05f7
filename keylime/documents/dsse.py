"""Signed policies: DSSE envelopes around a policy's text (https://github.com/secure-systems-lab/dsse).

Signatures are ECDSA with SHA-256 over the pre-authentication encoding (PAE) of payload type and payload.
"""

import base64
import contextlib
import datetime
import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509.oid import NameOID

from keylime.base64_text import decode_base64
from keylime.documents.strict_json import load_document
from keylime.errors import CredentialError, PolicyError
from keylime.pki.certificates import parse_certificate

PAYLOAD_TYPE = "application/vnd.keylime+json"
_POLICY_MEMBERS = ("digests", "hashes", "meta", "excludes", "keyrings")
_CERTIFICATE_NAME = "dsse_lib"
_CERTIFICATE_DAYS = 30


class _Signature(msgspec.Struct, frozen=True):
    sig: str
    keyid: str = ""


class _Envelope(msgspec.Struct, frozen=True):
    payload: str
    payload_type: str = msgspec.field(name="payloadType")
    signatures: list[_Signature]


def is_envelope(content: str | bytes) -> bool:
    """Whether `content` is a JSON object with a payload, signed or not."""
    # Policies can be large, and this spares them to be parsed twice. One backslash is found much sooner.
    if isinstance(content, bytes):
        may_be = b'"payload"' in content or (b"\\" in content and b"\\u" in content)
    else:
        may_be = '"payload"' in content or ("\\" in content and "\\u" in content)
    if not may_be:
        return False
    try:
        document = load_document(content, "the policy")
    except PolicyError:
        return False
    return isinstance(document, dict) and bool(document.get("payload"))


def open_envelope(text: str, keys: Sequence[bytes] = (), *, required: bool = False) -> str:
    """The policy text in `text`, which may be an envelope or the policy itself.

    `keys` are public keys or certificates in PEM; when there are any, an envelope must be signed by one of
    them. With `required` an unsigned text is refused, and so is an envelope that no key is there for.
    Raises PolicyError for what is no policy or not signed, CredentialError for a signature that does not
    hold.
    """
    if not is_envelope(text):
        if required:
            raise PolicyError("Runtime policy is not signed!")
        return text
    if keys:
        payload = _verified(_parse(text), [_load_key(key) for key in keys])
    elif required:
        raise CredentialError("the runtime policy is signed, but there is no key to verify it with")
    else:
        payload = _decode(_parse(text).payload, "payload")
    return _text(payload)


def verify_envelope(content: str | bytes, key: bytes | None) -> bytes:
    """The payload of an envelope signed by `key`, a public key or certificate in PEM.

    Without a key the certificates that the signatures carry are used: that shows that nothing was damaged,
    not who signed. Raises PolicyError for what is no envelope, CredentialError for a signature that does
    not hold.
    """
    envelope = _parse(content)
    if key is not None:
        return _verified(envelope, [_load_key(key)])
    keys = [
        found for signature in envelope.signatures if (found := _embedded_key(signature.keyid)) is not None
    ]
    if not keys:
        raise CredentialError(
            "the policy's signatures carry no certificate, so a key is needed to verify them"
        )
    return _verified(envelope, keys)


class PolicySigner(Protocol):
    """An elliptic-curve private key, in a file or in a device that keeps it."""

    def public_key(self) -> EllipticCurvePublicKey:
        """The public half."""

    def sign(self, data: bytes, signature_algorithm: ECDSA, /) -> bytes:
        """The signature of `data`, in DER."""


def sign_policy(payload: bytes, key: PolicySigner, key_id: str) -> str:
    """The envelope, as JSON text, of `payload` signed by `key`. An empty `key_id` is left out."""
    signature = {"sig": base64.b64encode(key.sign(_pae(PAYLOAD_TYPE, payload), ECDSA(SHA256()))).decode()}
    if key_id:
        signature = {"keyid": key_id, **signature}
    encoded = base64.b64encode(payload).decode()
    return json.dumps({"payload": encoded, "payloadType": PAYLOAD_TYPE, "signatures": [signature]})


def key_id_of(key: EllipticCurvePublicKey) -> str:
    """The key id of a bare key: hex SHA-256 of its PEM text."""
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def certificate_key_id(certificate: x509.Certificate) -> str:
    """The key id that carries a certificate: base64 of its PEM text."""
    return base64.b64encode(certificate.public_bytes(Encoding.PEM)).decode()


def self_signed_certificate(key: EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    """The certificate for signatures that carry their key: valid from a day before `now` to 30 days after."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _CERTIFICATE_NAME)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_CERTIFICATE_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, SHA256())
    )


def _parse(content: str | bytes) -> _Envelope:
    document = load_document(content, "the policy")
    # One reader would open it, another would read it as it is.
    for name in _POLICY_MEMBERS:
        if isinstance(document, dict) and name in document:
            raise PolicyError(f"the policy has {name!r} beside 'payload': is it an envelope or a policy?")
    try:
        return msgspec.convert(document, _Envelope)
    except msgspec.ValidationError as error:
        raise PolicyError(f"the policy is no DSSE envelope: {error}") from error


def _verified(envelope: _Envelope, keys: Sequence[EllipticCurvePublicKey]) -> bytes:
    """The payload, if some key signed it and no signature that names one of the keys is wrong."""
    if envelope.payload_type != PAYLOAD_TYPE:
        raise CredentialError(f"the policy's payload type is not {PAYLOAD_TYPE}")
    payload = _decode(envelope.payload, "payload")
    message = _pae(envelope.payload_type, payload)
    holds = False
    for signature in envelope.signatures:
        value = _decode(signature.sig, "sig")
        if any(_signed(key, value, message) for key in keys):
            holds = True
        elif not signature.keyid or any(_names(signature.keyid, key) for key in keys):
            # Another signer's signature cannot be checked here and does no harm; a broken one of ours does.
            raise CredentialError("the runtime policy has a signature that does not hold")
    if not holds:
        raise CredentialError("the runtime policy is not signed by the given key")
    return payload


def _names(key_id: str, key: EllipticCurvePublicKey) -> bool:
    embedded = _embedded_key(key_id)
    return key_id == key_id_of(key) or (embedded is not None and key_id_of(embedded) == key_id_of(key))


def _signed(key: EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, ECDSA(SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _load_key(pem: bytes) -> EllipticCurvePublicKey:
    try:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            key: object = parse_certificate(pem).public_key()
        else:
            key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm, CredentialError) as error:
        raise CredentialError(
            "the policy's verification key is neither a public key nor a certificate"
        ) from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise CredentialError("the policy's verification key is no elliptic-curve key")
    return key


def _embedded_key(key_id: str) -> EllipticCurvePublicKey | None:
    try:
        return _load_key(base64.b64decode(key_id, validate=True))
    except (ValueError, CredentialError):
        return None


def _pae(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _decode(text: str, name: str) -> bytes:
    with contextlib.suppress(ValueError):
        return decode_base64(text)
    with contextlib.suppress(ValueError):
        return base64.b64decode(text, altchars=b"-_", validate=True)
    raise PolicyError(f"the policy's envelope: {name} is not base64")


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise PolicyError("the policy's envelope holds no UTF-8 text") from error
