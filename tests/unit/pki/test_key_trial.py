"""Keys that do what they are for, and damaged ones."""

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from keylime.errors import ConfigError
from keylime.pki.key_trial import signs_for
from keylime.pki.tls import pinned_client_context

RSA, OTHER_RSA = (rsa.generate_private_key(65537, 2048) for _ in range(2))
EC, OTHER_EC = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


def damaged(key: rsa.RSAPrivateKey) -> rsa.RSAPrivateKey:
    """The same modulus, with private numbers that do not belong to it."""
    own, other = key.private_numbers(), OTHER_RSA.private_numbers()
    numbers = rsa.RSAPrivateNumbers(
        own.p, own.q, other.d, other.dmp1, other.dmq1, other.iqmp, own.public_numbers
    )
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def test_keys_sign_for_their_own_public_keys_alone() -> None:
    for key in (RSA, EC):
        assert signs_for(key, key.public_key())
    assert not signs_for(RSA, OTHER_RSA.public_key())
    assert not signs_for(EC, OTHER_EC.public_key())
    assert not signs_for(RSA, EC.public_key())
    assert not signs_for(EC, RSA.public_key())
    assert not signs_for(damaged(RSA), RSA.public_key())


def test_a_damaged_key_stops_who_would_use_it_with_its_certificate(tmp_path: Path) -> None:
    leaf = trustme.CA(key_type=trustme.KeyType.RSA).issue_cert("client", key_type=trustme.KeyType.RSA)
    certificate, key = tmp_path / "cert.crt", tmp_path / "private.pem"
    leaf.cert_chain_pems[0].write_to_path(certificate)
    key.touch(mode=0o600)
    key.write_bytes(leaf.private_key_pem.bytes())
    pinned_client_context(certificate=certificate, key=key)
    own = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    assert isinstance(own, rsa.RSAPrivateKey)
    key.write_bytes(damaged(own).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match=f"^{key}: the key is damaged: restore it"):
        pinned_client_context(certificate=certificate, key=key)
