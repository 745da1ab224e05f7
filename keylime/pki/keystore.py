"""`private.yml`: the encrypted file with the private keys of a certificate authority.

Pure: bytes in, bytes out. On disk it is a YAML mapping with `salt` (base64 text that is itself the salt) and
`priv` (a YAML binary of base64 text of IV, AES-256-GCM ciphertext and tag); inside is a YAML mapping of names
to PEM.
"""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keylime.errors import CredentialError

# Keys of the authority that will issue, and of the one that did, while it is rolled over.
NEXT_CA = "ca-next"
FORMER_CA = "ca-former"
_OWN_FIELDS = frozenset({"ca", "lastserial", "revoked_keys"})
RESERVED_NAMES = _OWN_FIELDS | {NEXT_CA, FORMER_CA}

_ITERATIONS = 100_000  # fixed by the format: the file does not record it
_KEY_SIZE = 32
_SALT_SIZE = 32
_IV_SIZE = 16
_TAG_SIZE = 16


@dataclass(frozen=True, slots=True)
class KeyStore:
    """The secrets of a certificate authority: unencrypted PKCS#8 PEM keys, and serial numbers."""

    ca_key: bytes = field(repr=False)
    last_serial: int
    revoked: tuple[int, ...] = ()
    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def with_key(self, name: str, pem: bytes, serial: int) -> "KeyStore":
        """This store after `serial` was issued to `name`."""
        return replace(self, keys={**self.keys, name: pem}, last_serial=serial)

    def with_next_ca(self, pem: bytes) -> "KeyStore":
        """This store with the key of the authority that will issue."""
        return replace(self, keys={**self.keys, NEXT_CA: pem})

    def switched(self) -> "KeyStore":
        """This store once the next authority issues; the key of the former one is kept. Raises KeyError."""
        others = {name: pem for name, pem in self.keys.items() if name != NEXT_CA}
        return replace(self, ca_key=self.keys[NEXT_CA], keys={**others, FORMER_CA: self.ca_key})

    def without_former_ca(self) -> "KeyStore":
        """This store when the former authority is trusted no more."""
        return replace(self, keys={name: pem for name, pem in self.keys.items() if name != FORMER_CA})

    def with_revoked(self, serial: int) -> "KeyStore":
        """This store with `serial` among the revoked ones."""
        return self if serial in self.revoked else replace(self, revoked=(*self.revoked, serial))


def seal(store: KeyStore, password: str) -> bytes:
    """`store` as the content of `private.yml`, under a fresh salt and IV."""
    import yaml  # few starts of a service issue anything

    inner = {
        **store.keys,
        "ca": store.ca_key,
        "lastserial": store.last_serial,
        "revoked_keys": [str(serial) for serial in store.revoked],
    }
    salt = base64.b64encode(secrets.token_bytes(_SALT_SIZE))
    iv = secrets.token_bytes(_IV_SIZE)
    sealed = iv + AESGCM(_derive_key(password, salt)).encrypt(iv, yaml.safe_dump(inner).encode(), None)
    return yaml.safe_dump({"priv": base64.b64encode(sealed), "salt": salt.decode("ascii")}).encode("ascii")


def unseal(data: bytes, password: str) -> KeyStore:
    """The store in `data`. Raises CredentialError; a wrong password and a damaged file look the same."""
    salt, sealed = _parse_outer(data)
    try:
        inner = AESGCM(_derive_key(password, salt)).decrypt(sealed[:_IV_SIZE], sealed[_IV_SIZE:], None)
    except InvalidTag as error:
        raise CredentialError("wrong password, or a damaged file") from error
    return _parse_inner(inner)


def _derive_key(password: str, salt: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode("utf-8"), salt, _ITERATIONS, _KEY_SIZE)


def _parse_outer(data: bytes) -> tuple[bytes, bytes]:
    document = _load_mapping(data)
    salt, sealed = (document.get(name) for name in ("salt", "priv"))
    if isinstance(salt, str):
        salt = salt.encode("utf-8")
    if not isinstance(salt, bytes) or not isinstance(sealed, bytes | str):
        raise CredentialError("`salt` or `priv` is missing")
    try:
        decoded = base64.b64decode(sealed)
    except (binascii.Error, ValueError) as error:
        raise CredentialError("`priv` is not base64") from error
    if len(decoded) < _IV_SIZE + _TAG_SIZE:
        raise CredentialError("`priv` is too short")
    return salt, decoded


def _parse_inner(data: bytes) -> KeyStore:
    document = _load_mapping(data)
    ca_key, last_serial = _as_pem(document.get("ca")), document.get("lastserial")
    revoked = document.get("revoked_keys") or []
    if ca_key is None or not isinstance(last_serial, int) or not isinstance(revoked, list):
        raise CredentialError("`ca`, `lastserial` or `revoked_keys` is missing")
    keys = {str(name): _as_pem(value) for name, value in document.items() if name not in _OWN_FIELDS}
    try:
        serials = tuple(int(serial) for serial in revoked)
    except (TypeError, ValueError) as error:
        raise CredentialError("`revoked_keys` holds something else than serial numbers") from error
    pems = {name: pem for name, pem in keys.items() if pem is not None}
    return KeyStore(ca_key=ca_key, last_serial=last_serial, revoked=serials, keys=pems)


def _as_pem(value: object) -> bytes | None:
    if isinstance(value, str):
        return value.encode("utf-8")
    return value if isinstance(value, bytes) else None


def _load_mapping(data: bytes) -> Mapping[object, object]:
    import yaml  # as above

    try:
        document = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CredentialError("not YAML") from error
    if not isinstance(document, dict):
        raise CredentialError("not a YAML mapping")
    return document
