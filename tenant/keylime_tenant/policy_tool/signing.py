"""Signing runtime policies, with a key that is there or with a new one."""

import datetime
import os
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from keylime.errors import ConfigError
from keylime.policy.dsse import (
    certificate_key_id,
    is_envelope,
    key_id_of,
    self_signed_certificate,
    sign_policy,
)
from keylime.policy.runtime import parse_runtime_policy
from keylime_tenant.policy_tool.files import blaming, read_input, write_new, write_output
from keylime_tenant.policy_tool.messages import Messages

BACKENDS = ("ecdsa", "x509")
_POLICY = "--runtime-policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningOrder:
    """What to sign with what, and where the results go; one of the two key files is used."""

    policy: str
    output: str | None
    key_file: str | None  # an existing key
    new_key_file: str  # where a new key is written otherwise
    backend: str
    certificate_file: str | None  # with backend x509
    validate: bool = True


def sign_runtime_policy(order: SigningOrder, messages: Messages, now: datetime.datetime) -> None:
    """Writes the signed policy, and with them a new key and the certificate. Raises ConfigError.

    The bytes of the file are signed as they are, so that the payload is what was reviewed.
    """
    content = read_input(_POLICY, order.policy)
    if is_envelope(content):
        raise ConfigError(f"{_POLICY} {order.policy}: is signed already")
    if order.validate:
        with blaming(_POLICY, order.policy):
            messages.warnings(parse_runtime_policy(content).warnings)
    key = _load_key(order.key_file) if order.key_file else _new_key(order.new_key_file, messages)
    if order.backend == "x509":
        certificate = self_signed_certificate(key, now)
        pem = certificate.public_bytes(Encoding.PEM).decode()
        write_output("--cert-outfile", order.certificate_file, pem)
        key_id = certificate_key_id(certificate)
        messages.remark(f"certificate valid until {_until(certificate)}")
    else:
        key_id = key_id_of(key.public_key())
    write_output("--output", order.output, sign_policy(content, key, key_id))


def _load_key(path: str) -> ec.EllipticCurvePrivateKey:
    option = "--keyfile"
    pem = read_input(option, path)
    try:
        key = load_pem_private_key(pem, None)
    except TypeError as error:
        raise ConfigError(f"{option} {path}: the key is encrypted; decrypt it first") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{option} {path}: no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{option} {path}: policies are signed with elliptic-curve keys, this is another")
    return key


def _new_key(path: str, messages: Messages) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if os.path.lexists(path):
        raise ConfigError(f"--keypath {path}: exists already; sign with it (--keyfile), or name another file")
    # The public key first: a private key whose public half cannot be written is of no use.
    write_new("--keypath", f"{path}.pub", public, mode=0o644)
    write_new("--keypath", path, private, mode=0o600)
    messages.note(
        f"new private key in {path}, public key in {path}.pub (for keylime_tenant --runtime-policy-sig-key)"
    )
    return key


def _until(certificate: x509.Certificate) -> str:
    return certificate.not_valid_after_utc.strftime("%Y-%m-%d")
