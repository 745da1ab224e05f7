"""A quote that was kept, and the key that should have signed it. Pure: `quote_files` reads them."""

import base64
import binascii
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from keylime.errors import ConfigError, MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import AttestationKey, PublicKey, SignatureScheme, parse_attestation_key
from keylime.tpm.quote import Quote, parse_quote
from keylime_policy.sources import SourceFile


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredQuote:
    """A quote as an agent would have sent it. `content` is None when the text is no quote.

    `has_attributes` tells whether `key` came with its public area, so that its attributes were checked.
    """

    text: str
    content: Quote | None
    key: AttestationKey
    has_attributes: bool
    nonce: str

    @property
    def bank(self) -> HashAlgorithm | None:
        """The bank of the PCR values, None when there are none."""
        return None if self.content is None else self.content.pcrs.bank

    @property
    def indices(self) -> frozenset[int]:
        """The PCRs that there are values of."""
        return frozenset() if self.content is None else frozenset(self.content.pcrs.values)


def stored_quote(text: str, ak: SourceFile, nonce: str) -> StoredQuote:
    """A quote in its wire form, and the key that should have signed it. Raises ConfigError."""
    try:
        content = parse_quote(text)
    except MalformedEvidence:
        content = None  # the appraisal says what is wrong with it
    if b"-----BEGIN" in ak.content:
        key, has_attributes = _key_without_attributes(ak, content), False
    else:
        with ak.blamed():
            key, has_attributes = parse_attestation_key(_decoded(ak.content)), True
    return StoredQuote(text=text, content=content, key=key, has_attributes=has_attributes, nonce=nonce)


def _decoded(data: bytes) -> bytes:
    """A TPM2B_PUBLIC as it is, or out of the base64 in which registrars show it."""
    try:
        return base64.b64decode(data.strip(), validate=True)
    except (binascii.Error, ValueError):
        return data


def _key_without_attributes(source: SourceFile, quote: Quote | None) -> AttestationKey:
    """The key in a PEM, taken to sign in the way in which the quote is signed."""
    try:
        public_key = load_pem_public_key(source.content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{source.option} {source.path}: no public key in PEM: {error}") from error
    if not isinstance(public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise ConfigError(f"{source.option} {source.path}: expected an RSA or elliptic-curve key")
    scheme, scheme_hash = _signing_way(public_key, quote)
    return AttestationKey(public_key, scheme, scheme_hash, name=b"", tpm2b_public=b"")


def _signing_way(public_key: PublicKey, quote: Quote | None) -> tuple[SignatureScheme, HashAlgorithm]:
    if quote is not None:
        return quote.signature.scheme, quote.signature.hash_algorithm
    is_rsa = isinstance(public_key, rsa.RSAPublicKey)
    return SignatureScheme.RSASSA if is_rsa else SignatureScheme.ECDSA, HashAlgorithm.SHA256
