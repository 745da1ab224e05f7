"""The bootstrap key K and its shares U and V: made, tagged, encrypted for the agent, put together again.

K encrypts the payload. The tenant gives U to the agent and V to the verifier, which passes V on after a good
quote only, so that nobody but an attested agent ever has both (docs/reference/rest-api.md, 6.1 and 6.2).
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections import deque
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from keylime.errors import CredentialError

KEY_SIZE = 32  # bytes of a new K
LEGAL_KEY_SIZES = frozenset({16, 32})  # AES-128 is legal on the wire
AUTH_TAG_SIZE = 48  # bytes, HMAC-SHA384
MAX_SHARES = 8  # of each kind, kept while they wait for their counterpart

# SHA-1 is fixed by the protocol; OAEP does not rest on its collision resistance.
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA1()), algorithm=hashes.SHA1(), label=None)  # noqa: S303


@dataclass(frozen=True, slots=True)
class BootstrapKey:
    """K and its shares, K = U xor V, all of one length. Its repr shows none of them."""

    k: bytes = field(repr=False)
    u: bytes = field(repr=False)
    v: bytes = field(repr=False)


def split_key() -> BootstrapKey:
    """A new random key of 32 bytes with its shares."""
    k, v = secrets.token_bytes(KEY_SIZE), secrets.token_bytes(KEY_SIZE)
    return BootstrapKey(k=k, u=_xor(k, v), v=v)


def combine(u: bytes, v: bytes) -> bytes:
    """K of the shares `u` and `v`. Raises CredentialError when they differ in length or have no legal one."""
    if len(u) != len(v) or len(u) not in LEGAL_KEY_SIZES:
        raise CredentialError("the shares of the bootstrap key do not have one legal length")
    return _xor(u, v)


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def render_key_file(key: BootstrapKey) -> str:
    """`key` as the text of a key file: K, V and U, one line of base64 each."""
    return "".join(base64.b64encode(part).decode("ascii") + "\n" for part in (key.k, key.v, key.u))


def parse_key_file(text: str) -> BootstrapKey:
    """The key in a key file: three lines, K and its shares in either order. Raises CredentialError."""
    lines = text.split()
    if len(lines) != 3:
        raise CredentialError("a key file has three lines of base64: K and its two shares")
    k, u, v = (_decode_base64(line) for line in lines)
    if not hmac.compare_digest(combine(u, v), k):
        raise CredentialError("the shares in the key file do not make its key")
    return BootstrapKey(k=k, u=u, v=v)


def auth_tag(k: bytes, agent_id: str) -> str:
    """The lower-case hex HMAC-SHA384 under the raw `k` of an agent's id, or of a /keys/verify challenge."""
    return hmac.new(k, agent_id.encode("utf-8"), hashlib.sha384).hexdigest()


def is_auth_tag(tag: str, k: bytes, agent_id: str) -> bool:
    """Whether `tag` is the auth tag of `agent_id` under `k`; takes the same time for every wrong tag."""
    return hmac.compare_digest(tag.lower().encode("utf-8"), auth_tag(k, agent_id).encode("ascii"))


def encrypt_share(public_key_pem: str, share: bytes) -> str:
    """`share` encrypted to the RSA key an agent's quote was bound to, in base64. Raises CredentialError."""
    try:
        key = serialization.load_pem_public_key(public_key_pem.encode("utf-8"))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CredentialError("the payload key of the agent is not a public key in PEM") from error
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < 2048:
        raise CredentialError("the payload key of the agent is not an RSA key of 2048 bits or more")
    try:
        return base64.b64encode(key.encrypt(share, _OAEP)).decode("ascii")
    except ValueError as error:
        raise CredentialError("the share is too long for the payload key") from error


def decrypt_share(private_key: rsa.RSAPrivateKey, text: str) -> bytes:
    """The share in base64 `text`, 16 or 32 bytes. Raises CredentialError, the same for every ciphertext."""
    ciphertext = _decode_base64(text)
    try:
        share = private_key.decrypt(ciphertext, _OAEP)
    except ValueError as error:
        raise CredentialError("the share cannot be decrypted") from error
    if len(share) not in LEGAL_KEY_SIZES:
        raise CredentialError("the share cannot be decrypted")
    return share


def parse_auth_tag(text: str) -> str:
    """`text` as an auth tag: 96 hex digits, given back in lower case. Raises CredentialError."""
    try:
        if len(bytes.fromhex(text)) == AUTH_TAG_SIZE and len(text) == 2 * AUTH_TAG_SIZE:
            return text.lower()
    except ValueError:
        pass
    raise CredentialError(f"the auth tag is not {2 * AUTH_TAG_SIZE} hex digits")


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise CredentialError("not base64") from error


@dataclass(frozen=True, slots=True)
class DerivedKey:
    """K, proven by its auth tag, with the payload that came with its U share (base64 ciphertext, or None)."""

    k: bytes = field(repr=False)
    payload: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class _UShare:
    share: bytes = field(repr=False)
    tag: str = field(repr=False)
    payload: str | None = field(repr=False)


class ShareCollector:
    """The shares an agent has received and not yet used, in any order, and several of each kind.

    At most `limit` shares of each kind wait; the oldest gives way. When a pair fits, all of them are dropped,
    and the V just used is not taken again before another U: a repeated delivery by the verifier must not wait
    here for a U of a later enrolment, which would then be complete before its own attestation.
    """

    def __init__(self, agent_id: str, limit: int = MAX_SHARES) -> None:
        self._agent_id = agent_id
        self._u: deque[_UShare] = deque(maxlen=limit)
        self._v: deque[bytes] = deque(maxlen=limit)
        self._used_v: bytes | None = None

    def __repr__(self) -> str:
        return f"ShareCollector({self._agent_id!r}, u={len(self._u)}, v={len(self._v)})"

    def add_u(self, share: bytes, tag: str, payload: str | None = None) -> DerivedKey | None:
        """Keeps a U share with its auth tag and payload; the key, if a V share that waits completes it."""
        self._used_v = None
        self._u.append(_UShare(share, tag, payload))
        return self._derive()

    def add_v(self, share: bytes) -> DerivedKey | None:
        """Keeps a V share; the key, if a U share that waits completes it."""
        if self._used_v is not None and hmac.compare_digest(self._used_v, share):
            return None
        self._v.append(share)
        return self._derive()

    def _derive(self) -> DerivedKey | None:
        for u in self._u:
            for v in self._v:
                if len(u.share) != len(v):
                    continue
                k = _xor(u.share, v)
                if is_auth_tag(u.tag, k, self._agent_id):
                    self._u.clear()
                    self._v.clear()
                    self._used_v = v
                    return DerivedKey(k, u.payload)
        return None
