import base64
import datetime
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from keylime.documents.dsse import (
    certificate_key_id,
    is_envelope,
    key_id_of,
    open_envelope,
    self_signed_certificate,
    sign_policy,
    verify_envelope,
)
from keylime.errors import CredentialError, PolicyError

POLICY = '{"meta": {"version": 1}}'
KEY = generate_private_key(SECP256R1())
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
OTHER = generate_private_key(SECP384R1())
OTHER_PEM = OTHER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
SIGNED = sign_policy(POLICY.encode(), KEY, key_id_of(KEY.public_key()))


def envelope(**changes: Any) -> str:
    return json.dumps({**json.loads(SIGNED), **changes})


def signatures(*texts: str) -> list[Any]:
    return [json.loads(text)["signatures"][0] for text in texts]


def test_what_was_signed_comes_out_again() -> None:
    assert is_envelope(SIGNED)
    assert is_envelope(SIGNED.encode())
    assert open_envelope(SIGNED, [PEM], required=True) == POLICY
    assert verify_envelope(SIGNED.encode(), PEM) == POLICY.encode()
    assert open_envelope(sign_policy(POLICY.encode(), OTHER, ""), [PEM, OTHER_PEM]) == POLICY


def test_an_envelope_may_spell_its_names_with_escapes() -> None:
    spelled = SIGNED.replace('"payload"', r'"\u0070ayload"')
    assert spelled != SIGNED
    assert is_envelope(spelled)
    assert is_envelope(spelled.encode())
    assert open_envelope(spelled) == open_envelope(SIGNED)


def test_the_signed_bytes_are_those_of_the_dsse_specification() -> None:
    payload = b"hello"
    signature = base64.b64decode(json.loads(sign_policy(payload, KEY, ""))["signatures"][0]["sig"])
    from_scratch = b"DSSEv1 28 application/vnd.keylime+json 5 hello"
    KEY.public_key().verify(signature, from_scratch, ECDSA(SHA256()))


@pytest.mark.parametrize(
    "text", ['["payload"]', '{"payload": ""}', '{"payload": null}', '"payload"', '{"payload": "x"']
)
def test_only_an_object_with_a_payload_is_an_envelope(text: str) -> None:
    assert not is_envelope(text)
    assert not is_envelope(text.encode())
    assert open_envelope(text) == text


@pytest.mark.parametrize("member", ["digests", "hashes", "meta"])
def test_l5_what_is_an_envelope_and_a_policy_at_once_is_neither(member: str) -> None:
    both = envelope(**{member: {}})
    for read in (
        lambda: open_envelope(both),
        lambda: open_envelope(both, [PEM]),
        lambda: verify_envelope(both, PEM),
    ):
        with pytest.raises(PolicyError, match=f"'{member}' beside 'payload'"):
            read()


@pytest.mark.parametrize("text", ['["digests"]', '"digests"', "7"])
def test_what_is_no_object_is_no_envelope_whatever_words_it_has(text: str) -> None:
    with pytest.raises(PolicyError, match="no DSSE envelope"):
        verify_envelope(text, PEM)


def test_l5_an_envelope_with_a_key_twice_is_not_opened() -> None:
    twice = SIGNED.replace('"payload":', '"payload": "", "payload":')
    assert open_envelope(twice) == twice, "it is no envelope, and no policy either"
    with pytest.raises(PolicyError, match="the key 'payload' is given twice"):
        verify_envelope(twice, PEM)


def test_a_signature_without_a_key_id_has_no_such_member() -> None:
    assert list(json.loads(sign_policy(b"x", KEY, ""))["signatures"][0]) == ["sig"]
    assert json.loads(sign_policy(b"x", KEY, "id"))["signatures"][0]["keyid"] == "id"


def certificate_of(key: EllipticCurvePrivateKey) -> str:
    return certificate_key_id(
        self_signed_certificate(key, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))
    )


def test_a_broken_signature_counts_when_its_certificate_is_of_the_given_key() -> None:
    by_other = sign_policy(POLICY.encode(), OTHER, certificate_of(OTHER))
    both = envelope(signatures=signatures(by_other, SIGNED))
    assert open_envelope(both, [PEM], required=True) == POLICY, "another signer does no harm"
    broken = sign_policy(b"other", KEY, certificate_of(KEY))
    with pytest.raises(CredentialError, match="does not hold"):
        open_envelope(envelope(signatures=signatures(SIGNED, broken)), [OTHER_PEM, PEM], required=True)


def test_signatures_with_certificates_are_checked_beside_those_without() -> None:
    with_certificate = sign_policy(POLICY.encode(), OTHER, certificate_of(OTHER))
    mixed = envelope(signatures=signatures(SIGNED, with_certificate))
    assert verify_envelope(mixed, None) == POLICY.encode()


def test_plain_policies_pass_only_where_no_signature_is_required() -> None:
    assert not is_envelope(POLICY)
    assert open_envelope(POLICY) == POLICY
    with pytest.raises(PolicyError, match="Runtime policy is not signed!"):
        open_envelope(POLICY, [PEM], required=True)


def test_without_a_key_an_envelope_is_opened_only_where_none_is_required() -> None:
    assert open_envelope(SIGNED) == POLICY
    with pytest.raises(CredentialError, match="no key"):
        open_envelope(SIGNED, required=True)


@pytest.mark.parametrize(
    "tampered",
    [
        envelope(payload=base64.b64encode(b'{"meta": {"version": 2}}').decode()),
        envelope(payloadType="text/plain"),
        envelope(signatures=[]),
        envelope(signatures=signatures(sign_policy(POLICY.encode(), OTHER, ""))),
        envelope(signatures=signatures(sign_policy(b"other", KEY, key_id_of(KEY.public_key())))),
        envelope(signatures=signatures(SIGNED, sign_policy(b"other", KEY, key_id_of(KEY.public_key())))),
        envelope(signatures=signatures(SIGNED, sign_policy(b"other", KEY, ""))),
    ],
    ids=["payload", "type", "none", "other key", "other payload", "one bad", "one bad, anonymous"],
)
def test_a_signature_that_does_not_hold_is_refused(tampered: str) -> None:
    with pytest.raises(CredentialError):
        open_envelope(tampered, [PEM], required=True)
    with pytest.raises(CredentialError):
        verify_envelope(tampered, PEM)


def test_a_signed_document_of_another_type_is_no_policy() -> None:
    kind = b"application/vnd.other+json"
    signature = KEY.sign(
        b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(POLICY), POLICY.encode()), ECDSA(SHA256())
    )
    other = envelope(payloadType=kind.decode(), signatures=[{"sig": base64.b64encode(signature).decode()}])
    with pytest.raises(CredentialError, match="payload type"):
        open_envelope(other, [PEM], required=True)


def test_a_second_signer_does_no_harm() -> None:
    both = envelope(
        signatures=signatures(sign_policy(POLICY.encode(), OTHER, key_id_of(OTHER.public_key())), SIGNED)
    )
    assert open_envelope(both, [PEM], required=True) == POLICY


def test_a_certificate_in_the_signature_shows_integrity_and_can_be_demanded() -> None:
    certificate = self_signed_certificate(KEY, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))
    signed = sign_policy(POLICY.encode(), KEY, certificate_key_id(certificate))
    assert verify_envelope(signed, None) == POLICY.encode()
    assert open_envelope(signed, [certificate.public_bytes(Encoding.PEM)], required=True) == POLICY
    assert certificate.not_valid_before_utc.day == 1
    with pytest.raises(CredentialError):
        open_envelope(signed, [OTHER_PEM], required=True)
    with pytest.raises(CredentialError, match="no certificate"):
        verify_envelope(SIGNED, None)


@pytest.mark.parametrize("key", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nx"])
def test_a_key_that_is_none_is_refused(key: bytes) -> None:
    with pytest.raises(CredentialError):
        open_envelope(SIGNED, [key])


def test_a_key_that_is_no_ec_key_is_refused() -> None:
    rsa = generate_rsa_key(65537, 2048).public_key()
    with pytest.raises(CredentialError, match="elliptic"):
        verify_envelope(SIGNED, rsa.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@pytest.mark.parametrize(
    "broken",
    [
        envelope(payload="%%"),
        envelope(payload=7),
        envelope(signatures="x"),
        envelope(signatures=[{"keyid": "x"}]),
        '{"payload": "eA=="}',
        "{",
    ],
)
def test_what_is_no_envelope_is_refused(broken: str) -> None:
    with pytest.raises(PolicyError):
        verify_envelope(broken, PEM)


def test_a_signed_payload_that_is_no_text_is_no_policy() -> None:
    with pytest.raises(PolicyError, match="no UTF-8 text"):
        open_envelope(sign_policy(b"\xff", KEY, ""), [PEM])


def test_url_safe_base64_is_understood() -> None:
    encoded = json.loads(SIGNED)
    encoded["signatures"][0]["sig"] = encoded["signatures"][0]["sig"].replace("+", "-").replace("/", "_")
    assert open_envelope(json.dumps(encoded), [PEM]) == POLICY


@given(st.binary(max_size=200))
def test_any_payload_survives_and_any_bytes_are_no_envelope(data: bytes) -> None:
    assert verify_envelope(sign_policy(data, KEY, ""), PEM) == data
    assert not is_envelope(data)
