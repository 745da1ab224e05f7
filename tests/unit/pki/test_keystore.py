from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import CredentialError
from keylime.pki.keystore import KeyStore, seal, unseal

CA_7_14_3 = Path(__file__).parents[2] / "data" / "ca-7.14.3"
STORE = KeyStore(ca_key=b"-----BEGIN-----\nca\n", last_serial=3, revoked=(2,), keys={"node1": b"pem"})


def test_what_is_sealed_comes_out_again() -> None:
    assert unseal(seal(STORE, "pw"), "pw") == STORE


def test_a_store_written_by_release_7_14_3_opens() -> None:
    store = unseal((CA_7_14_3 / "private.yml").read_bytes(), "test-only")
    assert store.last_serial == 3
    assert store.revoked == (2,)
    assert sorted(store.keys) == ["RevocationNotifier", "node1"]
    assert store.ca_key.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_wrong_password_opens_nothing() -> None:
    with pytest.raises(CredentialError, match="wrong password"):
        unseal(seal(STORE, "pw"), "Pw")


def test_two_seals_of_one_store_have_nothing_in_common() -> None:
    first, second = (yaml.safe_load(seal(STORE, "pw")) for _ in range(2))
    assert first["salt"] != second["salt"]
    assert first["priv"][:16] != second["priv"][:16]


def test_no_secret_is_in_the_representation() -> None:
    assert "BEGIN" not in repr(STORE)
    assert "pem" not in repr(STORE)


def test_yaml_that_would_build_an_object_is_refused() -> None:
    with pytest.raises(CredentialError, match="not YAML"):
        unseal(b"!!python/object/apply:os.system ['true']", "pw")


def test_a_flipped_bit_is_noticed() -> None:
    document = yaml.safe_load(seal(STORE, "pw"))
    damaged = bytearray(document["priv"])
    damaged[40] = ord("A") if damaged[40] != ord("A") else ord("B")
    with pytest.raises(CredentialError):
        unseal(yaml.safe_dump({**document, "priv": bytes(damaged)}).encode(), "pw")


@pytest.mark.parametrize("data", [b"[]", b"salt: 1", b"salt: a\npriv: ''", b"[" * 1200])
def test_a_document_of_another_shape_is_refused(data: bytes) -> None:
    with pytest.raises(CredentialError):
        unseal(data, "pw")


@given(st.binary(max_size=200))
def test_any_bytes_give_a_credential_error(data: bytes) -> None:
    with pytest.raises(CredentialError):
        unseal(data, "pw")
