import base64
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import CredentialError
from keylime.payload import keys
from keylime.pki.certificates import public_key_text

AGENT = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
PAYLOAD_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC_PEM = public_key_text(PAYLOAD_KEY.public_key())


def test_the_shares_of_a_new_key_make_the_key_and_neither_is_it() -> None:
    key = keys.split_key()
    assert {len(key.k), len(key.u), len(key.v)} == {32}
    assert keys.combine(key.u, key.v) == key.k
    assert len({key.k, key.u, key.v}) == 3


def test_no_two_keys_are_alike() -> None:
    assert keys.split_key() != keys.split_key()


def test_the_representation_shows_no_key() -> None:
    key = keys.BootstrapKey(k=b"K" * 32, u=b"U" * 32, v=b"V" * 32)
    assert repr(key) == "BootstrapKey()"
    assert repr(keys.DerivedKey(b"K" * 32, "secret")) == "DerivedKey()"
    collector = keys.ShareCollector(AGENT)
    collector.add_u(b"U" * 32, "ab" * 48, "secret")
    assert repr(collector) == f"ShareCollector('{AGENT}', u=1, v=0)"


@pytest.mark.parametrize(("u", "v"), [(b"a" * 32, b"b" * 16), (b"", b""), (b"a" * 31, b"b" * 31)])
def test_shares_of_unequal_or_illegal_length_make_no_key(u: bytes, v: bytes) -> None:
    with pytest.raises(CredentialError):
        keys.combine(u, v)


def test_the_auth_tag_is_hmac_sha384_under_the_raw_key() -> None:
    expected = hmac.digest(b"k" * 32, AGENT.encode(), hashlib.sha384).hex()
    assert keys.auth_tag(b"k" * 32, AGENT) == expected
    assert keys.is_auth_tag(expected.upper(), b"k" * 32, AGENT)


def test_the_tag_of_another_agent_or_key_does_not_fit() -> None:
    tag = keys.auth_tag(b"k" * 32, AGENT)
    assert not keys.is_auth_tag(tag, b"k" * 32, "node2")
    assert not keys.is_auth_tag(tag, b"j" * 32, AGENT)
    assert not keys.is_auth_tag("", b"k" * 32, AGENT)
    assert not keys.is_auth_tag("ü", b"k" * 32, AGENT)


@pytest.mark.parametrize("share", [b"s" * 32, b"s" * 16])
def test_a_share_reaches_the_owner_of_the_payload_key(share: bytes) -> None:
    text = keys.encrypt_share(PUBLIC_PEM, share)
    assert len(text) == 344
    assert keys.decrypt_share(PAYLOAD_KEY, text) == share


def test_shares_are_oaep_with_sha1_as_peers_expect() -> None:
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA1()), algorithm=hashes.SHA1(), label=None)  # noqa: S303 - the protocol's
    share = PAYLOAD_KEY.decrypt(base64.b64decode(keys.encrypt_share(PUBLIC_PEM, b"s" * 32)), oaep)
    assert share == b"s" * 32


def test_every_wrong_ciphertext_gives_the_same_error() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    texts = [
        base64.b64encode(b"x" * 256).decode(),
        base64.b64encode(b"short").decode(),
        keys.encrypt_share(public_key_text(other.public_key()), b"s" * 32),
        keys.encrypt_share(PUBLIC_PEM, b"s" * 31),
    ]
    messages = set()
    for text in texts:
        with pytest.raises(CredentialError) as caught:
            keys.decrypt_share(PAYLOAD_KEY, text)
        messages.add(str(caught.value))
    assert messages == {"the share cannot be decrypted"}


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "hello",
        public_key_text(ec.generate_private_key(ec.SECP256R1()).public_key()),
        public_key_text(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()),  # noqa: S505 - refused, as it should be
    ],
    ids=["empty", "text", "elliptic curve", "small"],
)
def test_a_share_is_encrypted_to_sound_rsa_keys_only(pem: str) -> None:
    with pytest.raises(CredentialError):
        keys.encrypt_share(pem, b"s" * 32)


@given(st.text(max_size=100))
def test_any_text_is_a_share_or_a_credential_error(text: str) -> None:
    with pytest.raises(CredentialError):
        keys.decrypt_share(PAYLOAD_KEY, text)


def test_a_key_file_has_three_lines_and_its_shares_may_be_swapped() -> None:
    key = keys.split_key()
    text = keys.render_key_file(key)
    assert [base64.b64decode(line) for line in text.splitlines()] == [key.k, key.v, key.u]
    parsed = keys.parse_key_file(text)
    assert parsed.k == key.k
    assert {parsed.u, parsed.v} == {key.u, key.v}


@given(st.text(max_size=200))
def test_any_text_is_a_key_file_or_a_credential_error(text: str) -> None:
    with pytest.raises(CredentialError):
        keys.parse_key_file(text)


def test_shares_that_do_not_make_the_key_of_the_file_are_refused() -> None:
    lines = keys.render_key_file(keys.split_key()).splitlines()
    other = keys.render_key_file(keys.split_key()).splitlines()
    with pytest.raises(CredentialError, match="do not make"):
        keys.parse_key_file("\n".join([other[0], *lines[1:]]))


@pytest.mark.parametrize("text", ["", "ab", "zz" * 48, "ab" * 49, " ".join(["ab"] * 48), "\uff41\uff42" * 48])
def test_an_auth_tag_is_96_hex_digits(text: str) -> None:
    with pytest.raises(CredentialError):
        keys.parse_auth_tag(text)
    assert keys.parse_auth_tag("AB" * 48) == "ab" * 48


KEY = keys.split_key()
TAG = keys.auth_tag(KEY.k, AGENT)
OTHER = keys.split_key()


def test_shares_derive_the_key_in_either_order() -> None:
    for first_u in (True, False):
        collector = keys.ShareCollector(AGENT)
        if first_u:
            assert collector.add_u(KEY.u, TAG, "payload") is None
            derived = collector.add_v(KEY.v)
        else:
            assert collector.add_v(KEY.v) is None
            derived = collector.add_u(KEY.u, TAG, "payload")
        assert derived == keys.DerivedKey(KEY.k, "payload")


def test_a_wrong_share_does_not_spoil_the_right_one() -> None:
    collector = keys.ShareCollector(AGENT)
    assert collector.add_v(OTHER.v) is None
    assert collector.add_u(OTHER.u, TAG, "wrong") is None
    assert collector.add_v(b"s" * 16) is None
    assert collector.add_u(KEY.u, TAG, "right") is None
    assert collector.add_v(KEY.v) == keys.DerivedKey(KEY.k, "right")


def test_the_payload_and_tag_belong_to_their_own_share() -> None:
    collector = keys.ShareCollector(AGENT)
    collector.add_u(KEY.u, TAG, "mine")
    collector.add_u(OTHER.u, keys.auth_tag(OTHER.k, AGENT), "theirs")
    assert collector.add_v(KEY.v) == keys.DerivedKey(KEY.k, "mine")


def test_the_tag_of_another_agent_derives_nothing() -> None:
    collector = keys.ShareCollector(AGENT)
    collector.add_u(KEY.u, keys.auth_tag(KEY.k, "node2"))
    assert collector.add_v(KEY.v) is None


def test_a_repeated_v_does_not_derive_twice() -> None:
    collector = keys.ShareCollector(AGENT)
    collector.add_u(KEY.u, TAG)
    assert collector.add_v(KEY.v) is not None
    assert collector.add_v(KEY.v) is None


def test_a_repeated_v_does_not_wait_for_the_next_enrolment() -> None:
    collector = keys.ShareCollector(AGENT)
    collector.add_u(KEY.u, TAG)
    collector.add_v(KEY.v)
    collector.add_v(KEY.v)  # the verifier missed the answer and sends it again
    assert collector.add_u(KEY.u, TAG) is None  # added again with the same key file
    assert collector.add_v(KEY.v) is not None


def test_the_oldest_share_gives_way_when_too_many_wait() -> None:
    collector = keys.ShareCollector(AGENT, limit=2)
    collector.add_u(KEY.u, TAG)
    for _ in range(2):
        collector.add_u(OTHER.u, TAG)
    assert collector.add_v(KEY.v) is None
    assert repr(collector).endswith("u=2, v=1)")
    assert collector.add_u(KEY.u, TAG) is not None
