import base64
import hashlib
import hmac
import re

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.nonce import random_text
from keylime.tpm.credential import activation_tag, parse_credential_blob
from keylime.tpm.keys import EndorsementKey, parse_endorsement_key
from keylime.tpm.sealing import make_credential
from tests.captures import Capture, captures

CAPTURE = captures()[0]
AK_NAME = CAPTURE.ak_name("rsassa")
HEADER = bytes.fromhex("badcc0de 00000001")
LIBRARY: dict[HashAlgorithm, hashes.HashAlgorithm] = {
    HashAlgorithm.SHA256: hashes.SHA256(),
    HashAlgorithm.SHA384: hashes.SHA384(),
    HashAlgorithm.SHA512: hashes.SHA512(),
}
KEYS = [
    rsa.generate_private_key(65537, 2048),
    *(ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())),
]


@pytest.mark.parametrize(("kind", "size", "secret_size"), [("rsa", 336, 256), ("ecc", 148, 68)])
def test_a_credential_has_the_documented_layout(kind: str, size: int, secret_size: int) -> None:
    blob = make_credential(parse_endorsement_key(CAPTURE.ek_public(kind)), AK_NAME, random_text(32).encode())
    assert len(blob) == size
    assert blob[:12] == HEADER + bytes.fromhex("0044 0020")
    id_object, encrypted_secret = parse_credential_blob(blob)
    assert (len(id_object), len(encrypted_secret)) == (68, secret_size)
    assert blob == HEADER + b"\x00\x44" + id_object + secret_size.to_bytes(2, "big") + encrypted_secret


def opened(blob: bytes, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, ek: EndorsementKey) -> bytes:
    """The secret, by derivations and modes of the library; ValueError or InvalidSignature without one."""
    id_object, secret = parse_credential_blob(blob)
    algorithm = LIBRARY[ek.name_alg]
    if isinstance(key, rsa.RSAPrivateKey):
        seed = key.decrypt(secret, OAEP(MGF1(algorithm), algorithm, b"IDENTITY\0"))
    else:
        size = (len(secret) - 4) // 2
        x, y = secret[2 : 2 + size], secret[4 + size :]
        assert secret == size.to_bytes(2) + x + size.to_bytes(2) + y
        point = ec.EllipticCurvePublicKey.from_encoded_point(key.curve, b"\4" + x + y)
        own = key.public_key().public_numbers().x.to_bytes(size)
        parties = b"IDENTITY\0" + x + own
        seed = ConcatKDFHash(algorithm, ek.name_alg.size, parties).derive(key.exchange(ec.ECDH(), point))

    def derived(label: bytes, context: bytes, size: int) -> bytes:
        place = CounterLocation.BeforeFixed
        return KBKDFHMAC(algorithm, Mode.CounterMode, size, 4, 4, place, label, context, None).derive(seed)

    integrity, encrypted = id_object[2 : 2 + ek.name_alg.size], id_object[2 + ek.name_alg.size :]
    check = HMAC(derived(b"INTEGRITY", b"", ek.name_alg.size), algorithm)
    check.update(encrypted + AK_NAME)
    check.verify(integrity)
    key_of_secret = AES(derived(b"STORAGE", AK_NAME, ek.symmetric_bits // 8))
    stream, block = b"", bytes(16)
    for start in range(0, len(encrypted), 16):
        stream += Cipher(key_of_secret, CBC(block)).encryptor().update(bytes(16))
        block = encrypted[start : start + 16]
    sized = bytes(one ^ other for one, other in zip(encrypted, stream, strict=False))
    assert int.from_bytes(sized[:2]) == len(sized) - 2
    return sized[2:]


@pytest.mark.parametrize("name_alg", LIBRARY, ids=lambda algorithm: algorithm.label)
@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{type(key).__name__}-{key.key_size}")
def test_an_ek_of_any_kind_opens_what_is_sealed_for_it(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, bits: int, name_alg: HashAlgorithm
) -> None:
    ek = EndorsementKey(key.public_key(), name_alg, b"", bits, b"")
    for size in (1, 14, 15, 30, name_alg.size):
        secret = random_text(size).encode()
        assert opened(make_credential(ek, AK_NAME, secret), key, ek) == secret
    with pytest.raises(InvalidSignature):
        opened(make_credential(ek, AK_NAME[:-1], b"secret"), key, ek)


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
