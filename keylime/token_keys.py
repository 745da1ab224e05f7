"""Keys that do not leave their device: in tokens behind PKCS#11, and in a TPM behind its TSS2 PEM file.

A TPM has a PKCS#11 module too (tpm2-pkcs11). The libraries are optional, and are asked for when they are
needed.
"""

import getpass
import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from keylime.errors import ConfigError, TpmError

SCHEME = "pkcs11:"
PIN_VARIABLE = "KEYLIME_POLICY_KEY_PIN"
MODULE_VARIABLE = "PKCS11_MODULE_PATH"
TPM_KEY = b"-----BEGIN TSS2 PRIVATE KEY-----"
_PATH = frozenset({"token", "object", "id", "serial", "manufacturer", "model", "type"})
_QUERY = frozenset({"module-path", "pin-source", "pin-value"})


@dataclass(frozen=True, slots=True)
class TokenAddress:
    """What a PKCS#11 URI (RFC 7512) says."""

    token: str | None
    serial: bytes | None
    label: str | None
    key_id: bytes | None
    module: str | None
    pin_source: str | None
    pin_value: str | None


def parse_address(option: str, uri: str) -> TokenAddress:
    """The parts of a PKCS#11 URI that `option` gives. Raises ConfigError, which never shows a PIN."""
    path, _, query = uri.removeprefix(SCHEME).partition("?")
    parts = _attributes(option, path, ";", _PATH) | _attributes(option, query, "&", _QUERY)
    if "object" not in parts and "id" not in parts:
        raise ConfigError(
            f"{option} {SCHEME}...: names no key: give object= (its label) or id=, as in "
            "pkcs11:token=ours;object=policy?module-path=/usr/lib/softhsm/libsofthsm2.so"
        )
    return TokenAddress(
        token=_text(parts, "token"),
        serial=unquote_to_bytes(parts["serial"]) if "serial" in parts else None,
        label=_text(parts, "object"),
        key_id=unquote_to_bytes(parts["id"]) if "id" in parts else None,
        module=_text(parts, "module-path"),
        pin_source=_text(parts, "pin-source"),
        pin_value=_text(parts, "pin-value"),
    )


def _attributes(option: str, text: str, separator: str, known: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if not equals or name not in known or name in found:
            raise ConfigError(
                f"{option} {SCHEME}...: the attribute {name[:40]!r} is unknown, twice there or empty; "
                f"known are {', '.join(sorted(known))}"
            )
        found[name] = value
    return found


def _text(parts: Mapping[str, str], name: str) -> str | None:
    return unquote(parts[name]) if name in parts else None


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A private key in a token, in a session that is open."""

    _key: Any
    _public: ec.EllipticCurvePublicKey
    _where: str

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._public

    def sign(self, data: bytes, signature_algorithm: ec.ECDSA) -> bytes:
        """The signature in DER."""
        import pkcs11  # an optional library, which was there when the key was opened

        digest = _digest(data, signature_algorithm)
        try:
            raw = self._key.sign(digest, mechanism=pkcs11.Mechanism.ECDSA)
        except pkcs11.PKCS11Error as error:
            raise ConfigError(f"{self._where}: the token does not sign: {_reason(error)}") from error
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


@contextmanager
def token_key(option: str, uri: str, environ: Mapping[str, str]) -> Iterator[TokenKey]:
    """The elliptic-curve key that a PKCS#11 URI of `option` names, while its session is open.

    Raises ConfigError.
    """
    try:
        import pkcs11
        import pkcs11.util.ec
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{option} {SCHEME}...: the Python package python-pkcs11 is not installed; run: "
            'pip install "keylime[pkcs11]"'
        ) from error
    address = parse_address(option, uri)
    module = address.module or environ.get(MODULE_VARIABLE)
    if not module:
        raise ConfigError(
            f"{option} {SCHEME}...: what speaks to the token? Give ?module-path=FILE, or {MODULE_VARIABLE}"
        )
    where = f"{option} {SCHEME}... ({module})"
    with ExitStack() as stack:
        try:
            library = pkcs11.lib(module)
            token = library.get_token(token_label=address.token, token_serial=address.serial)
            session = stack.enter_context(token.open(user_pin=_pin(option, address, environ)))
            private = _one(session, pkcs11.ObjectClass.PRIVATE_KEY, address, where)
            public = _one(session, pkcs11.ObjectClass.PUBLIC_KEY, address, where)
            if private.key_type is not pkcs11.KeyType.EC:
                raise ConfigError(f"{where}: policies are signed with elliptic-curve keys, this is another")
            key = load_der_public_key(pkcs11.util.ec.encode_ec_public_key(public))
        except (pkcs11.PKCS11Error, RuntimeError, ValueError) as error:
            raise ConfigError(f"{where}: {_reason(error)}") from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ConfigError(f"{where}: policies are signed with elliptic-curve keys, this is another")
        yield TokenKey(private, key, where)


def _one(session: Any, kind: object, address: TokenAddress, where: str) -> Any:
    import pkcs11

    wanted: dict[object, object] = {pkcs11.Attribute.CLASS: kind}
    if address.label is not None:
        wanted[pkcs11.Attribute.LABEL] = address.label
    if address.key_id is not None:
        wanted[pkcs11.Attribute.ID] = address.key_id
    found = list(session.get_objects(wanted))
    if len(found) != 1:
        name = "private" if kind is pkcs11.ObjectClass.PRIVATE_KEY else "public"
        raise ConfigError(f"{where}: the token has {len(found)} {name} keys of that label and id, not one")
    return found[0]


def _pin(option: str, address: TokenAddress, environ: Mapping[str, str]) -> str | None:
    """The PIN, from the first place that has one: a file, the URI, the environment, whoever types."""
    if address.pin_source is not None:
        path = address.pin_source.removeprefix("file:")
        try:
            return Path(path).read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise ConfigError(f"{option} {SCHEME}...: pin-source {path}: {reason}") from error
    if address.pin_value is not None:
        return address.pin_value
    return _secret(option, "the token", environ)


def _secret(option: str, what: str, environ: Mapping[str, str]) -> str:
    if PIN_VARIABLE in environ:
        return environ[PIN_VARIABLE]
    if sys.stdin.isatty():
        return getpass.getpass(f"PIN of {what}: ")
    raise ConfigError(f"{option}: there is no PIN of {what}: {PIN_VARIABLE} (or ?pin-source=FILE) gives one")


def _digest(data: bytes, signature_algorithm: ec.ECDSA) -> bytes:
    if not isinstance(signature_algorithm.algorithm, SHA256):
        raise ValueError("policies are signed with SHA-256")
    return hashlib.sha256(data).digest()


@dataclass(frozen=True, slots=True)
class TpmKey:
    """A private key that only its TPM can load, from a TSS2 PEM file (as tpm2-openssl writes it)."""

    _key: Any
    _public: ec.EllipticCurvePublicKey
    _password: bytes | None
    _tcti: str
    _where: str

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._public

    def sign(self, data: bytes, signature_algorithm: ec.ECDSA) -> bytes:
        """The signature in DER. Raises ConfigError."""
        import tpm2_pytss as tss  # type: ignore[import-untyped]

        scheme = tss.TPMT_SIG_SCHEME(scheme=tss.TPM2_ALG.ECDSA)
        scheme.details.ecdsa.hashAlg = tss.TPM2_ALG.SHA256
        try:
            with tss.ESAPI(self._tcti) as tpm:
                handle = self._key.load(tpm, self._password)
                value = tpm.sign(handle, _digest(data, signature_algorithm), scheme)
                tpm.flush_context(handle)
        except tss.TSS2_Exception as error:
            raise ConfigError(f"{self._where}: the TPM does not sign with it: {error}") from error
        ecdsa = value.signature.ecdsa
        r, s = bytes(ecdsa.signatureR.buffer), bytes(ecdsa.signatureS.buffer)
        return encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))


def open_tpm_key(option: str, path: str, pem: bytes, environ: Mapping[str, str]) -> TpmKey:
    """The elliptic-curve key in a TSS2 PEM file that `option` names. Raises ConfigError."""
    where = f"{option} {path}"
    try:
        from tpm2_pytss.tsskey import TSSPrivKey  # type: ignore[import-untyped]

        from keylime.tpm.device import choose_tcti
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{where}: is the key of a TPM, and the Python package tpm2-pytss is not installed; run: "
            'pip install "keylime[agent]"'
        ) from error
    try:
        key = TSSPrivKey.from_pem(pem)
        public = load_pem_public_key(key.public.to_pem())
        tcti = choose_tcti(environ)
    except TpmError as error:
        raise ConfigError(f"{where}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{where}: the key of a TPM in it cannot be read: {error}") from error
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{where}: policies are signed with elliptic-curve keys, this is another")
    password = None if key.empty_auth else _secret(option, "the TPM's key", environ)
    return TpmKey(key, public, None if password is None else password.encode(), tcti, where)


def _reason(error: Exception) -> str:
    names = {
        "PinIncorrect": "the PIN is wrong",
        "PinLocked": "the PIN is locked after too many wrong ones",
        "NoSuchToken": "there is no such token",
        "MultipleTokensReturned": "several tokens fit: give token= or serial=",
        "TokenNotPresent": "the token is not there",
    }
    kind = type(error).__name__
    return names.get(kind) or str(error).splitlines()[0] if str(error) else names.get(kind, kind)
