"""A quote from a disk: the wire form or three files, and the key that should have signed it."""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from keylime.errors import ConfigError, MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import AttestationKey, PublicKey, SignatureScheme, parse_attestation_key
from keylime.tpm.quote import Quote, encode_quote, parse_quote
from keylime_tenant.policy_tool.files import blaming, read_input

_PARTS = (".msg", ".sig", ".pcrs")  # TPMS_ATTEST, TPMT_SIGNATURE, PCR values
_QUOTE = "--quote"
_AK = "--ak"


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


def load_quote(path: str, ak: str, nonce: str) -> StoredQuote:
    """The quote at `path` (a file, or what the names of three files begin with). Raises ConfigError."""
    text = _quote_text(path)
    try:
        content = parse_quote(text)
    except MalformedEvidence:
        content = None  # the appraisal says what is wrong with it
    key, has_attributes = _load_key(ak, content)
    return StoredQuote(text=text, content=content, key=key, has_attributes=has_attributes, nonce=nonce)


def _quote_text(path: str) -> str:
    prefix = path.rstrip(".")
    if not Path(path).is_file() and Path(prefix + _PARTS[0]).is_file():
        attest, signature, pcrs = (read_input(_QUOTE, prefix + part) for part in _PARTS)
        return encode_quote(attest, signature, pcrs)
    try:
        return read_input(_QUOTE, path).decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{_QUOTE} {path}: neither the text of a quote (r...:...:...) "
            f"nor what the names of a {', a '.join(_PARTS)} file begin with"
        ) from error


def _load_key(path: str, quote: Quote | None) -> tuple[AttestationKey, bool]:
    data = read_input(_AK, path)
    if b"-----BEGIN" in data:
        return _key_without_attributes(path, data, quote), False
    with blaming(_AK, path):
        return parse_attestation_key(_decoded(data)), True


def _decoded(data: bytes) -> bytes:
    """A TPM2B_PUBLIC as it is, or out of the base64 in which registrars show it."""
    try:
        return base64.b64decode(data.strip(), validate=True)
    except (binascii.Error, ValueError):
        return data


def _key_without_attributes(path: str, pem: bytes, quote: Quote | None) -> AttestationKey:
    """The key in a PEM, taken to sign in the way in which the quote is signed."""
    try:
        public_key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{_AK} {path}: no public key in PEM: {error}") from error
    if not isinstance(public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise ConfigError(f"{_AK} {path}: expected an RSA or elliptic-curve key")
    scheme, scheme_hash = _signing_way(public_key, quote)
    return AttestationKey(public_key, scheme, scheme_hash, name=b"", tpm2b_public=b"")


def _signing_way(public_key: PublicKey, quote: Quote | None) -> tuple[SignatureScheme, HashAlgorithm]:
    if quote is not None:
        return quote.signature.scheme, quote.signature.hash_algorithm
    is_rsa = isinstance(public_key, rsa.RSAPublicKey)
    return SignatureScheme.RSASSA if is_rsa else SignatureScheme.ECDSA, HashAlgorithm.SHA256
