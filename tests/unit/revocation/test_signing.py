import base64
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from keylime.errors import CredentialError
from keylime.identifiers import AgentId
from keylime.messages.revocation import RevocationMessage, SignedRevocation
from keylime.pki.certificates import (
    PrivateKey,
    certificate_text,
    encode_private_key,
    parse_certificate,
    self_signed_certificate,
)
from keylime.revocation.message import encode_message
from keylime.revocation.signing import sign_revocation, verify_revocation

MESSAGE = RevocationMessage(
    type="revocation",
    ip="127.0.0.1",
    agent_id="node1",
    port=9002,
    tpm_policy="{}",
    meta_data="{}",
    event_time="Sun Nov 22 18:05:08 2026",
    event_id="ima.validation",
    severity_label="emergency",
    context='{"message": "größer"}',
)


def pair(key: PrivateKey) -> tuple[str, bytes]:
    certificate = self_signed_certificate(key, AgentId("RevocationNotifier"), None, datetime.now(UTC))
    return encode_private_key(key, None).decode(), certificate_text(certificate).encode()


KEY, CERTIFICATE = pair(rsa.generate_private_key(public_exponent=65537, key_size=2048))
_, OTHER_CERTIFICATE = pair(rsa.generate_private_key(public_exponent=65537, key_size=2048))
EC_KEY, EC_CERTIFICATE = pair(ec.generate_private_key(ec.SECP256R1()))
SIGNED = sign_revocation(MESSAGE, KEY)


def test_a_signed_message_verifies_and_is_the_same() -> None:
    assert verify_revocation(SIGNED, CERTIFICATE) == MESSAGE
    assert SIGNED.msg == encode_message(MESSAGE)


def test_the_signature_is_pss_with_the_longest_salt() -> None:
    key = parse_certificate(CERTIFICATE).public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=222)
    key.verify(base64.b64decode(SIGNED.signature), SIGNED.msg.encode(), scheme, hashes.SHA256())


@pytest.mark.parametrize(
    "signed",
    [
        SignedRevocation(SIGNED.msg.replace("node1", "node2"), SIGNED.signature),
        SignedRevocation(SIGNED.msg + " ", SIGNED.signature),
        SignedRevocation(SIGNED.msg, ""),
        SignedRevocation(SIGNED.msg, "not base64!"),
        SignedRevocation(SIGNED.msg, "ü"),
        SignedRevocation(SIGNED.msg, base64.b64encode(bytes(256)).decode()),
    ],
)
def test_an_altered_message_or_signature_is_refused(signed: SignedRevocation) -> None:
    with pytest.raises(CredentialError, match="signature of the revocation message is wrong"):
        verify_revocation(signed, CERTIFICATE)


@pytest.mark.parametrize("certificate", [OTHER_CERTIFICATE, EC_CERTIFICATE, b"", b"hello"])
def test_only_the_right_certificate_verifies(certificate: bytes) -> None:
    with pytest.raises(CredentialError):
        verify_revocation(SIGNED, certificate)


def test_an_agent_added_without_a_key_sends_an_empty_signature() -> None:
    signed = sign_revocation(MESSAGE, "")
    assert signed.signature == ""
    with pytest.raises(CredentialError):
        verify_revocation(signed, CERTIFICATE)


@pytest.mark.parametrize("key", [EC_KEY, "hello"])
def test_a_key_that_is_not_rsa_signs_nothing(key: str) -> None:
    with pytest.raises(CredentialError):
        sign_revocation(MESSAGE, key)


def test_a_genuine_signature_over_something_else_is_refused() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = '{"type": "revocation"}'
    scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
    signature = base64.b64encode(key.sign(text.encode(), scheme, hashes.SHA256())).decode()
    with pytest.raises(CredentialError, match="not a revocation message"):
        verify_revocation(SignedRevocation(text, signature), pair(key)[1])


def test_a_lone_surrogate_is_refused_without_a_crash() -> None:
    with pytest.raises(CredentialError):
        verify_revocation(SignedRevocation("\ud800", SIGNED.signature), CERTIFICATE)
