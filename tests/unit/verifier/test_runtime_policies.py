"""Policies as they arrive: encodings, signatures, and what is kept of them (attack L1)."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.documents.dsse import sign_policy
from keylime.errors import MalformedMessage, PolicyError
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime_verifier.agents.refusals import NotApproved
from keylime_verifier.policies.runtime import accept_runtime_policy, compile_stored_policy

POLICY = json.dumps({**json.loads(EMPTY_POLICY), "digests": {"/bin/a": ["ab" * 32]}})
SIGNER, STRANGER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def public(key: ec.EllipticCurvePrivateKey) -> str:
    return b64(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def signed(text: str = POLICY) -> str:
    return sign_policy(text.encode(), SIGNER, "")


def test_a_signed_policy_is_kept_as_it_came_and_compiled_from_its_payload() -> None:
    text = accept_runtime_policy(b64(signed()), public(SIGNER), signature_required=True).text
    assert json.loads(text)["payload"]
    assert "/bin/a" in compile_stored_policy(text).digests


@pytest.mark.parametrize("key", [public(STRANGER), None, ""])
def test_a_missing_or_wrong_signature_is_refused_when_signatures_are_required(key: str | None) -> None:
    with pytest.raises(NotApproved):
        accept_runtime_policy(b64(signed()), key, signature_required=True)


def test_an_unsigned_policy_is_refused_when_signatures_are_required() -> None:
    with pytest.raises(PolicyError, match="not signed"):
        accept_runtime_policy(b64(POLICY), public(SIGNER), signature_required=True)


def test_a_key_that_comes_along_must_fit_even_when_signatures_are_not_required() -> None:
    with pytest.raises(NotApproved):
        accept_runtime_policy(b64(signed()), public(STRANGER), signature_required=False)
    assert accept_runtime_policy(b64(POLICY), None, signature_required=False).text == POLICY


@pytest.mark.parametrize("policy", ["not base64!", base64.b64encode(b"\xff").decode()])
def test_what_is_not_base64_of_text_is_named(policy: str) -> None:
    with pytest.raises(MalformedMessage, match="runtime_policy"):
        accept_runtime_policy(policy, None, signature_required=False)


def test_what_the_schema_refuses_is_called_malformatted() -> None:
    with pytest.raises(PolicyError, match="malformatted"):
        accept_runtime_policy(b64('{"meta": {}}'), None, signature_required=False)
