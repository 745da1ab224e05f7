"""The issuers of device identities: read anew when the operator's store has changed, and not before."""

from pathlib import Path

import pytest

from keylime_registrar import anchors
from keylime_registrar.anchors import Anchors
from tests.fakes.tls_material import Authority


def names(store: Anchors) -> set[str]:
    return {item.certificate.subject.rfc4514_string() for item in store.load()}


def test_what_is_added_replaced_or_removed_counts_at_once(tmp_path: Path) -> None:
    store = Anchors(tmp_path)
    assert names(store) == set()
    Authority("one").write(tmp_path / "one.pem")
    assert names(store) == {"CN=one"}
    Authority("two").write(tmp_path / "two.pem")
    assert names(store) == {"CN=one", "CN=two"}
    Authority("other").write(tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / "one.pem")
    assert names(store) == {"CN=other", "CN=two"}
    (tmp_path / "two.pem").unlink()
    assert names(store) == {"CN=other"}


def test_n15_a_store_that_is_as_it_was_is_not_read_again(tmp_path: Path) -> None:
    Authority("one").write(tmp_path / "one.pem")
    store = Anchors(tmp_path)
    first = store.load()
    assert store.load() is first
    (tmp_path / "notes.txt").write_text("of no matter")
    assert store.load() is first


def test_a_store_that_is_missing_or_a_file_that_is_broken_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert Anchors(tmp_path / "missing").load() == ()
    Authority("one").write(tmp_path / "one.pem")
    store = Anchors(tmp_path)
    assert len(store.load()) == 1
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
    assert names(store) == {"CN=one"}, "a broken file takes nobody down but its own issuers"
    assert [record.levelname for record in caplog.records if record.name == anchors.__name__] == ["ERROR"] * 2
    (tmp_path / "bad.pem").unlink()
    assert len(store.load()) == 1
