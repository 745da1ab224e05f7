import base64
import io
import json
import zipfile
from pathlib import Path

import pytest

from keylime.errors import ConfigError
from keylime.identifiers import AgentId
from keylime.payload.encryption import decrypt_payload, encrypt_payload
from keylime.payload.keys import combine
from keylime.pki.authority import Authority
from keylime_tenant.arguments import Arguments
from keylime_tenant.payload import NOTHING, PayloadDelivery, check_rules
from keylime_tenant.payload_sources import prepare_delivery
from keylime_tenant.userdata_encrypt import KEYS_FILE, PAYLOAD_FILE, encrypt_file

AGENT = AgentId("node1")
MAX_SIZE = 1 << 20


def no_authority() -> Authority:
    raise AssertionError("no certificate was asked for")


def nothing() -> None:
    pass


def prepare(arguments: Arguments, *, max_size: int = MAX_SIZE) -> PayloadDelivery:
    return prepare_delivery(
        arguments, AGENT, max_size=max_size, open_authority=no_authority, take_back=nothing
    )


def content_of(delivery: PayloadDelivery) -> bytes:
    assert delivery.key is not None
    assert delivery.ciphertext is not None
    assert combine(delivery.key.u, delivery.key.v) == delivery.key.k
    return decrypt_payload(delivery.key.k, delivery.ciphertext)


@pytest.mark.parametrize(
    "arguments",
    [
        Arguments(file="a", keyfile="b"),
        Arguments(file="a", ca_dir="b"),
        Arguments(keyfile="a", ca_dir="b"),
        Arguments(verify=True),
        Arguments(payload="p"),
        Arguments(include_dir="d"),
    ],
)
def test_payload_flags_that_do_not_go_together_are_refused(arguments: Arguments) -> None:
    with pytest.raises(ConfigError):
        check_rules(arguments)


def test_without_flags_nothing_is_delivered() -> None:
    assert prepare(Arguments()) == NOTHING
    assert NOTHING.v_share is None


def test_a_file_is_encrypted_under_a_fresh_key_each_time(tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"hello")
    first, second = (prepare(Arguments(file=str(tmp_path / "payload"))) for _ in range(2))
    assert content_of(first) == content_of(second) == b"hello"
    assert first.v_share != second.v_share


def test_a_payload_over_the_limit_is_refused_by_its_encrypted_size(tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(bytes(100))
    size = len(encrypt_payload(bytes(32), bytes(100)))
    assert prepare(Arguments(file=str(tmp_path / "payload")), max_size=size).ciphertext
    with pytest.raises(ConfigError, match="max_payload_size"):
        prepare(Arguments(file=str(tmp_path / "payload")), max_size=size - 1)


def test_what_was_encrypted_ahead_is_delivered_with_its_keys(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"ahead of time")
    encrypt_file(tmp_path / "source", tmp_path)
    assert (tmp_path / KEYS_FILE).stat().st_mode & 0o077 == 0
    arguments = Arguments(keyfile=str(tmp_path / KEYS_FILE), payload=str(tmp_path / PAYLOAD_FILE))
    assert content_of(prepare(arguments)) == b"ahead of time"
    only_keys = prepare(Arguments(keyfile=str(tmp_path / KEYS_FILE)))
    assert only_keys.ciphertext is None
    assert only_keys.v_share is not None


def test_a_payload_of_other_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    encrypt_file(tmp_path / "source", tmp_path)
    (tmp_path / "other").write_text(encrypt_payload(bytes(32), b"x"))
    with pytest.raises(ConfigError, match="-p"):
        prepare(Arguments(keyfile=str(tmp_path / KEYS_FILE), payload=str(tmp_path / "other")))


@pytest.mark.parametrize("text", ["", "AAAA\nAAAA\n", "x\ny\nz\n", "AAAA\nAAAA\nAAAA\n", "é\né\né\n"])
def test_a_key_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match="-k"):
        prepare(Arguments(keyfile=str(tmp_path / "keys")))


def test_a_missing_file_is_named_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"-f: No such file or directory: .*gone"):
        prepare(Arguments(file=str(tmp_path / "gone")))


def test_a_certificate_package_holds_certificates_and_included_files(tmp_path: Path) -> None:
    included = tmp_path / "include"
    (included / "deeper").mkdir(parents=True)
    (included / "autorun.sh").write_bytes(b"#!/bin/sh\n")
    (included / "deeper" / "not-me").write_bytes(b"")
    delivery = prepare_delivery(
        Arguments(ca_dir=str(tmp_path / "ca"), include_dir=str(included)),
        AGENT,
        max_size=MAX_SIZE,
        open_authority=lambda: Authority.create(tmp_path / "ca", "secret"),
        take_back=nothing,
    )
    names = set(zipfile.ZipFile(io.BytesIO(content_of(delivery))).namelist())
    assert names == {
        "node1-public.pem",
        "node1-cert.crt",
        "node1-private.pem",
        "cacert.crt",
        "cacrl.der",
        "cacrl.pem",
        "RevocationNotifier-cert.crt",
        "autorun.sh",
    }
    metadata = json.loads(delivery.metadata)
    assert metadata["subject"] == "OU=53,O=Keylime,L=Lexington,ST=MA,CN=node1,C=US"
    assert isinstance(metadata["cert_serial"], int)
    assert delivery.revocation_key.startswith("-----BEGIN")
    assert base64.b64decode(delivery.v_share or "")


def test_a_certificate_is_taken_back_only_once_the_included_files_have_been_read(tmp_path: Path) -> None:
    taken = []

    def deliver(include: Path) -> PayloadDelivery:
        return prepare_delivery(
            Arguments(ca_dir=str(tmp_path / "ca"), include_dir=str(include)),
            AGENT,
            max_size=MAX_SIZE,
            open_authority=lambda: Authority.create(tmp_path / "ca", "secret"),
            take_back=lambda: taken.append(include),
        )

    with pytest.raises(ConfigError, match="--include"):
        deliver(tmp_path / "gone")
    assert not taken
    (tmp_path / "included").mkdir()
    deliver(tmp_path / "included")
    assert taken == [tmp_path / "included"]
