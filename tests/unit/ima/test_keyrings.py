import base64
import datetime
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import PolicyError, UnsuitableKey
from keylime.ima.keyrings import EMPTY_KEYRING, keyring_of, parse_keyring, recognise_key
from tests.captures import IMA_KEYS_DIRECTORY

RSA_ID, EC_ID = 0xB07CCEF7, 0xB6BA92E1


@pytest.mark.parametrize("file", sorted(IMA_KEYS_DIRECTORY.iterdir()), ids=lambda file: file.name)
def test_captured_keys_have_the_ids_that_the_signatures_name(file) -> None:  # type: ignore[no-untyped-def]
    key = recognise_key(file.read_bytes())
    assert key is not None
    assert key.key_id == (RSA_ID if "rsa" in file.name else EC_ID)


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_a_private_key_counts_as_its_public_half(encoding: Encoding) -> None:
    private = generate_private_key(65537, 2048)
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    data = private.private_bytes(encoding, PrivateFormat.PKCS8, NoEncryption())
    key = recognise_key(data)
    assert key is not None
    assert key.spki == public
    assert recognise_key(public) == key


def test_a_key_may_have_text_before_it_but_not_any_length() -> None:
    pem = (IMA_KEYS_DIRECTORY / "ima-ec.pub.pem").read_bytes()
    with_text = b"Bag Attributes\n" + pem
    assert recognise_key(with_text) == recognise_key(pem)
    assert recognise_key(with_text.ljust(65536, b"\n")) == recognise_key(pem)
    assert recognise_key(with_text.ljust(65537, b"\n")) is None
    header = len(b"-----BEGIN")
    assert recognise_key(b"\n" * (4096 - header) + pem) == recognise_key(pem)
    assert recognise_key(b"\n" * (4097 - header) + pem) is None


def certificate(*extensions: x509.ExtensionType, key: CertificateIssuerPrivateKeyTypes) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "key")])
    day = datetime.datetime(2026, 1, 1)  # noqa: DTZ001  certificates have no time zone
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, day, day)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    hashed = None if isinstance(key, Ed25519PrivateKey) else SHA256()
    return builder.sign(key, hashed).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("identifier", "key_id"),
    [
        (b"\x11\x22\x33\x44", 0x11223344),
        (b"\0\x11\x22\x33\x44", 0x11223344),
        (b"\x22\x33\x44", None),
        (bytes(4), None),
    ],
)
def test_the_end_of_a_certificates_key_identifier_is_the_id_if_it_can_be_one(
    identifier: bytes, key_id: int | None
) -> None:
    private = generate_ec_key(SECP256R1())
    plain = recognise_key(certificate(key=private))
    key = recognise_key(certificate(x509.SubjectKeyIdentifier(identifier), key=private))
    assert plain is not None
    assert key is not None
    assert key.key_id == (plain.key_id if key_id is None else key_id)
    assert key.public_key == plain.public_key


def altered_certificate(old: str, new: str) -> bytes:
    """A certificate of an EC key with some bytes changed, its signature left as it is."""
    good = certificate(key=generate_ec_key(SECP256R1()))
    assert good.count(bytes.fromhex(old)) == 1
    return good.replace(bytes.fromhex(old), bytes.fromhex(new))


def test_a_certificate_that_is_odd_but_readable_is_no_news() -> None:
    # Version 3, serial number 0: the library warns of it, and warnings fail tests.
    assert recognise_key(altered_certificate("a003020102020101", "a003020102020100")) is not None


def test_a_certificate_of_an_unknown_curve_is_refused() -> None:
    odd = altered_certificate("2a8648ce3d030107", "2a8648ce3d03017f")
    with pytest.raises(UnsuitableKey, match="no supported type"):
        recognise_key(odd)


def test_a_certificate_of_another_type_of_key_is_refused() -> None:
    with pytest.raises(UnsuitableKey, match="RSA or EC"):
        recognise_key(certificate(key=Ed25519PrivateKey.generate()))


def test_a_key_of_another_type_is_refused_by_its_type() -> None:
    data = (
        Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(UnsuitableKey, match="Ed25519"):
        recognise_key(data)
    with pytest.raises(PolicyError, match=r"key file 2: .*Ed25519"):
        keyring_of([(IMA_KEYS_DIRECTORY / "ima-ec.pub.pem").read_bytes(), data])


@pytest.mark.parametrize(
    "data", [b"", b"6.1.0-56-amd64", b"\x30", b"\x30\x82\xff\xff", b"-----BEGIN PUBLIC KEY-----\n"]
)
def test_other_bytes_are_no_key(data: bytes) -> None:
    assert recognise_key(data) is None


@given(st.binary(max_size=200))
def test_any_buffer_is_a_key_or_none(tail: bytes) -> None:
    for data in (tail, b"\x30" + tail):
        try:
            recognise_key(data)
        except UnsuitableKey:
            continue


def keyring_document(**changes: object) -> str:
    keyring = keyring_of([(IMA_KEYS_DIRECTORY / "ima-rsa.crt.der").read_bytes()])
    return json.dumps({**json.loads(keyring.to_json()), **changes})


def test_a_keyring_survives_its_document_also_when_encoded_twice() -> None:
    files = ("ima-rsa.crt.der", "ima-ec.pub.pem")
    keyring = keyring_of([(IMA_KEYS_DIRECTORY / file).read_bytes() for file in files])
    assert [key.key_id for key in keyring.keys] == [RSA_ID, EC_ID]
    assert parse_keyring(keyring.to_json()) == keyring
    assert parse_keyring(json.dumps(keyring.to_json())) == keyring
    assert list(json.loads(keyring.to_json())) == ["pubkeys", "keyids"]


@pytest.mark.parametrize("text", ["", " ", "null", "[]", "{}", '""'])
def test_nothing_is_an_empty_keyring(text: str) -> None:
    if text == "{}":
        assert parse_keyring(text) == EMPTY_KEYRING
    assert parse_keyring(text).to_json() == ""


def test_stated_key_ids_win_and_missing_ones_are_derived() -> None:
    assert parse_keyring(keyring_document(keyids=[7])).keys[0].key_id == 7
    derived = parse_keyring(keyring_document(keyids=[]))
    assert derived.keys[0].key_id == parse_keyring(keyring_document(keyids=[0])).keys[0].key_id
    assert derived.keys[0].key_id == RSA_ID  # its subject key identifier is the SHA-1 of the key


def test_an_unusable_key_is_left_out_with_a_warning() -> None:
    good = json.loads(keyring_document())["pubkeys"][0]
    keyring = parse_keyring(keyring_document(pubkeys=["%%", base64.b64encode(b"no key").decode(), good]))
    assert len(keyring.keys) == 1
    assert [warning.split(" ")[1] for warning in keyring.warnings] == ["pubkeys[0]", "pubkeys[1]"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"keyids": []}', '{"pubkeys": 1, "keyids": []}', '"{"'])
def test_what_is_no_keyring_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="verification-keys"):
        parse_keyring(text)


def test_l5_a_keyring_with_a_member_twice_is_refused_but_for_one_that_is_kept() -> None:
    document = keyring_document()
    twice = f'{{"keyids": [1], {document[1:]}'
    for text in (twice, json.dumps(twice)):
        with pytest.raises(PolicyError, match="the key 'keyids' is given twice"):
            parse_keyring(text)
        assert parse_keyring(text, is_stored=True) == parse_keyring(document)


def test_a_file_without_a_key_is_refused_by_its_number() -> None:
    with pytest.raises(PolicyError, match="key file 2"):
        keyring_of([(IMA_KEYS_DIRECTORY / "ima-ec.pub.pem").read_bytes(), b"nothing"])


def test_a_certificate_of_an_unknown_version_is_no_key() -> None:
    der = (IMA_KEYS_DIRECTORY / "ima-rsa.crt.der").read_bytes()
    odd = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020106"), 1)
    assert odd != der
    assert recognise_key(odd) is None
    document = json.dumps({"pubkeys": [base64.b64encode(odd).decode()], "keyids": [0]})
    assert parse_keyring(document).keys == ()
