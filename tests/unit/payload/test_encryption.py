import base64

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import CredentialError
from keylime.payload.encryption import decrypt_payload, encrypt_payload

K = bytes(range(32))


@pytest.mark.parametrize("k", [K, K[:16]])
def test_a_payload_comes_out_as_it_went_in(k: bytes) -> None:
    assert decrypt_payload(k, encrypt_payload(k, b"secret")) == b"secret"


def test_the_ciphertext_is_a_16_byte_iv_the_gcm_text_and_the_tag() -> None:
    sealed = base64.b64decode(encrypt_payload(K, b"secret"))
    assert len(sealed) == 16 + 6 + 16
    assert AESGCM(K).decrypt(sealed[:16], sealed[16:], None) == b"secret"


@pytest.mark.parametrize("position", [0, 15, 16, 21, 22, 37])
def test_an_altered_byte_is_noticed(position: int) -> None:
    sealed = bytearray(base64.b64decode(encrypt_payload(K, b"secret")))
    sealed[position] ^= 1
    with pytest.raises(CredentialError, match="cannot be decrypted"):
        decrypt_payload(K, base64.b64encode(sealed).decode())


def test_another_key_and_a_shorter_tag_are_noticed() -> None:
    text = encrypt_payload(K, b"secret")
    with pytest.raises(CredentialError):
        decrypt_payload(bytes(32), text)
    with pytest.raises(CredentialError):
        decrypt_payload(K, base64.b64encode(base64.b64decode(text)[:-4]).decode())


@given(st.text(max_size=100))
def test_any_text_is_a_payload_or_a_credential_error(text: str) -> None:
    with pytest.raises(CredentialError):
        decrypt_payload(K, text)
