import base64
import hashlib
import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.nonce import random_text
from keylime.tpm.credential import activation_tag, parse_credential_blob
from keylime.tpm.keys import parse_endorsement_key
from keylime.tpm.sealing import make_credential
from tests.captures import Capture, captures

CAPTURE = captures()[0]
AK_NAME = CAPTURE.ak_name("rsassa")
HEADER = bytes.fromhex("badcc0de 00000001")


@pytest.mark.parametrize(("kind", "size", "secret_size"), [("rsa", 336, 256), ("ecc", 148, 68)])
def test_a_credential_has_the_documented_layout(kind: str, size: int, secret_size: int) -> None:
    blob = make_credential(parse_endorsement_key(CAPTURE.ek_public(kind)), AK_NAME, random_text(32).encode())
    assert len(blob) == size
    assert blob[:12] == HEADER + bytes.fromhex("0044 0020")
    id_object, encrypted_secret = parse_credential_blob(blob)
    assert (len(id_object), len(encrypted_secret)) == (68, secret_size)
    assert blob == HEADER + b"\x00\x44" + id_object + secret_size.to_bytes(2, "big") + encrypted_secret


def test_every_credential_is_sealed_afresh() -> None:
    ek = parse_endorsement_key(CAPTURE.ek_public("rsa"))
    assert make_credential(ek, AK_NAME, b"secret") != make_credential(ek, AK_NAME, b"secret")


@pytest.mark.parametrize("secret", [b"", bytes(33)])
def test_a_secret_that_no_tpm_would_hold_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="1 to 32 bytes"):
        make_credential(parse_endorsement_key(CAPTURE.ek_public("ecc")), AK_NAME, secret)


@pytest.mark.parametrize("capture", captures(), ids=lambda capture: capture.name)
def test_files_of_tpm2_makecredential_are_read(capture: Capture) -> None:
    blob = capture.read("credential.blob")
    id_object, encrypted_secret = parse_credential_blob(blob)
    assert (len(id_object), len(encrypted_secret)) == (68, 256)
    assert blob == HEADER + b"\x00\x44" + id_object + b"\x01\x00" + encrypted_secret


@pytest.mark.parametrize(
    ("blob", "complaint"),
    [
        (b"", "cut short"),
        (bytes.fromhex("badcc0df 00000001 0000 0000"), "0xbadcc0df"),
        (bytes.fromhex("badcc0de 00000002 0000 0000"), "version 2"),
        (bytes.fromhex("badcc0de 00000001 0000 0000 00"), "unexpected"),
        (bytes.fromhex("badcc0de 00000001 ffff 00"), "65535 bytes"),
        (bytes.fromhex("badcc0de 00000001 0000 0201"), "513 bytes"),
    ],
)
def test_other_files_are_malformed_for_a_stated_reason(blob: bytes, complaint: str) -> None:
    with pytest.raises(MalformedEvidence, match=complaint):
        parse_credential_blob(blob)


@given(st.binary(max_size=300))
def test_any_bytes_parse_canonically_or_are_malformed(data: bytes) -> None:
    for candidate in (data, HEADER + data):
        try:
            id_object, secret = parse_credential_blob(candidate)
        except MalformedEvidence:
            continue
        sizes = (len(id_object).to_bytes(2, "big"), len(secret).to_bytes(2, "big"))
        assert candidate == HEADER + sizes[0] + id_object + sizes[1] + secret


def test_the_activation_tag_is_keyed_with_the_base64_text_of_the_secret() -> None:
    secret, agent_id = CAPTURE.read("credential_secret.bin"), "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
    expected = hmac.new(base64.b64encode(secret), agent_id.encode(), hashlib.sha384).hexdigest()
    assert activation_tag(secret, agent_id) == expected
    assert re.fullmatch(r"[0-9a-f]{96}", expected)
