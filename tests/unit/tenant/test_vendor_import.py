"""Makers' CA certificates into the store, from what makers publish."""

import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from keylime.errors import ConfigError
from keylime.pki.der import read_certificate
from keylime.pki.ek import check_ek_certificate
from keylime.pki.tpm_cert_store import load_trust_store
from keylime_tenant.ca.vendor_import import import_vendor, read_source
from tests.captures import DATA
from tests.fakes.vendor_certificates import (
    ATTRIBUTES,
    EK_KEY,
    Parts,
    ca_certificate,
    common_name,
    ek_certificate,
    name,
)

NOW = datetime(2027, 1, 1, tzinfo=UTC)
PLAIN = ca_certificate(Parts())
DISORDERED = name(ATTRIBUTES)
OTHER = ca_certificate(Parts(subject=DISORDERED, issuer=DISORDERED))
PEM = (DATA / "evidence" / "ek-certificate-name-set-order-ca.pem").read_bytes()


def directory(root: Path) -> Path:
    (root / "maker" / "sub").mkdir(parents=True)
    (root / "maker" / "root.cer").write_bytes(PLAIN)
    (root / "maker" / "sub" / "ca").write_bytes(OTHER)
    (root / "maker" / "bundle.pem").write_bytes(PEM + PEM)
    (root / "maker" / "README").write_text("where these come from")
    (root / "maker" / "ek.der").write_bytes(ek_certificate(Parts(subject=common_name(b"ek"))))
    (root / "maker" / "broken.crt").write_bytes(b"\x30\x03\x02\x01\x01")
    return root / "maker"


def archive(root: Path) -> Path:
    source = directory(root)
    with zipfile.ZipFile(root / "maker.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        for path in source.rglob("*"):
            opened.write(path, path.relative_to(source))
    return root / "maker.zip"


@pytest.mark.parametrize("make", [directory, archive])
def test_what_holds_ca_certificates_is_taken_and_the_rest_is_said(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    source, store, said = make(tmp_path), tmp_path / "store", list[str]()
    for _ in range(2):
        import_vendor([str(source), "--store", str(store)], {}, said.append)
    assert len(list(store.iterdir())) == 3
    assert sum("(new)" in line for line in said) == sum("(there already)" in line for line in said) == 3
    assert any("ek.der" in line and "is not that of a CA" in line for line in said)
    assert any("broken.crt" in line for line in said)
    assert "3 certificates added" in "\n".join(said)
    assert "0 certificates added" in said[-2]


def test_a_certificate_is_stored_as_its_maker_signed_it(tmp_path: Path) -> None:
    (tmp_path / "ca.der").write_bytes(OTHER)
    import_vendor([str(tmp_path / "ca.der"), "--store", str(tmp_path / "store")], {}, lambda _: None)
    store = load_trust_store(tmp_path / "store")
    (group,) = store.by_subject.values()
    assert group[0].signed_bytes == read_certificate(OTHER).signed_bytes
    ek = ek_certificate(Parts(subject=common_name(b"ek"), issuer=DISORDERED))
    assert check_ek_certificate(ek, EK_KEY.public_key(), store, NOW).trusted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"MSCF" + bytes(40), "cabextract"),
        (b"hello", "holds no CA certificate"),
        (b"PK\x05\x06" + bytes(18), "holds no CA certificate"),
    ],
)
def test_what_cannot_be_imported_is_one_clear_error(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        import_vendor([str(tmp_path / "file"), "--store", str(tmp_path / "store")], {}, lambda _: None)
    assert not (tmp_path / "store").exists()


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere cannot be read"):
        read_source(tmp_path / "nowhere")
