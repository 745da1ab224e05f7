"""Signing runtime policies, with a key that is there or with a new one."""

import datetime
import os
from contextlib import ExitStack

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from keylime.documents.dsse import (
    PolicySigner,
    certificate_key_id,
    is_envelope,
    key_id_of,
    self_signed_certificate,
    sign_policy,
)
from keylime.errors import ConfigError
from keylime.ima.runtime_policy import parse_runtime_policy
from keylime.signing_keys import signing_key
from keylime_policy.files import read_input, write_new, write_output
from keylime_policy.messages import Messages
from keylime_policy.signing_order import Backend, SigningOrder
from keylime_policy.sources import blaming

_POLICY = "--runtime-policy"


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
    with ExitStack() as stack:
        _sign(order, content, _key(order, messages, stack), messages, now)


def _key(order: SigningOrder, messages: Messages, stack: ExitStack) -> PolicySigner:
    """The key that is to sign, until `stack` is closed."""
    path = order.key_file
    if path is None:
        return _new_key(order.new_key_file, messages)
    return stack.enter_context(signing_key("--keyfile", path, os.environ, read_input))


def _sign(
    order: SigningOrder, content: bytes, key: PolicySigner, messages: Messages, now: datetime.datetime
) -> None:
    if order.backend is Backend.X509:
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError("--backend x509: certificates are made with keys in files only; leave it out")
        certificate = self_signed_certificate(key, now)
        pem = certificate.public_bytes(Encoding.PEM).decode()
        write_output("--cert-outfile", order.certificate_file, pem)
        key_id = certificate_key_id(certificate)
        messages.remark(f"certificate valid until {_until(certificate)}")
    else:
        key_id = key_id_of(key.public_key())
    if order.public_key_file is not None:
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        write_output("--pubkey-outfile", order.public_key_file, pem)
    write_output("--output", order.output, sign_policy(content, key, key_id))


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
