import io
import shutil
import stat
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from keylime.errors import ConfigError
from keylime.pki.authority import Authority
from keylime.pki.certificates import parse_certificate
from keylime.pki.issuance import CertificateSubject, Usage
from keylime.pki.key_files import load_private_key
from keylime.pki.keystore import unseal
from keylime.pki.roles import ADMINISTRATOR, NODE, extended_usages, is_administrators
from keylime.pki.server_names import ServerNames
from keylime.pki.service_certificates import Done, ensure_service_certificates, server_names

CA_7_14_3 = Path(__file__).parents[1] / "data" / "ca-7.14.3"
CA_FILES = {"cacert.crt", "ca-public.pem", "cacrl.der", "cacrl.pem", "private.yml"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA made once; tests work on copies of its directory, because keys take a while."""
    directory = tmp_path_factory.mktemp("authority") / "ca"
    authority = Authority.create(directory, "pw")
    authority.issue("node1")
    return directory


@pytest.fixture
def directory(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "ca"))


def certificate_in(path: Path) -> x509.Certificate:
    return parse_certificate(path.read_bytes())


def crl_serials(directory: Path) -> set[int]:
    pem = x509.load_pem_x509_crl((directory / "cacrl.pem").read_bytes())
    der = x509.load_der_x509_crl((directory / "cacrl.der").read_bytes())
    assert pem == der
    return {revoked.serial_number for revoked in pem}


def test_a_new_authority_has_its_files_with_their_modes(directory: Path) -> None:
    own = {f"node1-{part}" for part in ("cert.crt", "private.pem", "public.pem")}
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in directory.iterdir()}
    assert modes == dict.fromkeys(CA_FILES | own, 0o640)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_ca_certificate_can_sign_certificates_and_lists_only(directory: Path) -> None:
    ca = certificate_in(directory / "cacert.crt")
    assert ca.serial_number == 1
    names = [attribute.rfc4514_string() for attribute in ca.subject]
    assert names == ["C=US", "CN=Keylime Certificate Authority", "ST=MA", "L=Lexington", "O=Keylime", "OU=53"]
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).critical
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.crl_sign
    assert not usage.digital_signature
    days = (ca.not_valid_after_utc - ca.not_valid_before_utc).total_seconds() / 86400
    assert days == pytest.approx(3650, abs=0.01)


def test_a_leaf_is_signed_by_the_ca_and_is_none_itself(directory: Path) -> None:
    leaf = certificate_in(directory / "node1-cert.crt")
    leaf.verify_directly_issued_by(certificate_in(directory / "cacert.crt"))
    assert leaf.serial_number == 2
    assert leaf.subject.rfc4514_string() == "OU=53,O=Keylime,L=Lexington,ST=MA,CN=node1,C=US"
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("node1")]
    key = load_private_key(directory / "node1-private.pem", None)
    assert key.public_key() == leaf.public_key()


@pytest.mark.parametrize(
    ("name", "purposes"),
    [
        ("server", {ExtendedKeyUsageOID.SERVER_AUTH}),
        ("client", {ExtendedKeyUsageOID.CLIENT_AUTH, ADMINISTRATOR}),
        ("RevocationNotifier", {x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")}),
    ],
)
def test_each_role_gets_its_own_purposes(
    directory: Path, name: str, purposes: set[x509.ObjectIdentifier]
) -> None:
    leaf = Authority.open(directory, "pw").issue(name).certificate
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == purposes


def test_the_usage_can_be_chosen(directory: Path) -> None:
    leaf = Authority.open(directory, "pw").issue("alice", usage=Usage.CLIENT).certificate
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ADMINISTRATOR,
    ]


def test_n3_a_machines_certificate_says_that_it_is_one(directory: Path) -> None:
    assert NODE in (extended_usages(certificate_in(directory / "node1-cert.crt")) or ())


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an authority that a verifier has made."""
    directory = tmp_path_factory.mktemp("daemons") / "cv_ca"
    ensure_service_certificates(directory, "pw", server_sans=("localhost",), client=True)
    return directory


def listing(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("issue", ["issue", "ensure", "ensure_node", "package", "write_package"])
def test_n3_an_authority_that_serves_daemons_makes_none_for_machines(daemons: Path, issue: str) -> None:
    before = listing(daemons)
    with pytest.raises(ConfigError, match=r"cv_ca serves daemons .*use another directory.*keylime_ca"):
        getattr(Authority.open(daemons, "pw"), issue)("node9")
    assert listing(daemons) == before


@pytest.mark.parametrize("kept", ["server-cert.crt", "server-private.pem", "client-private.pem", None])
def test_n3_daemons_are_noticed_by_any_trace_that_they_left(
    daemons: Path, tmp_path: Path, kept: str | None
) -> None:
    directory = Path(shutil.copytree(daemons, tmp_path / "ca"))
    for name in ("server", "client"):
        for end in ("cert.crt", "private.pem", "public.pem"):
            if f"{name}-{end}" != kept:
                (directory / f"{name}-{end}").unlink()
    with pytest.raises(ConfigError, match="serves daemons"):
        Authority.open(directory, "pw").issue("node9")


@pytest.mark.parametrize("usage", [Usage.CLIENT, Usage.SERVER])
def test_n3_daemons_are_noticed_under_whatever_name(directory: Path, usage: Usage) -> None:
    authority = Authority.open(directory, "pw")
    authority.issue("verifier.example.com", usage=usage)
    with pytest.raises(ConfigError, match=r"verifier\.example\.com-cert\.crt"):
        authority.package("node1")


def test_n3_such_an_authority_still_makes_administrators_and_revokes(daemons: Path, tmp_path: Path) -> None:
    authority = Authority.open(Path(shutil.copytree(daemons, tmp_path / "ca")), "pw")
    alice = authority.issue("alice", usage=Usage.CLIENT)
    assert is_administrators(alice.certificate)
    assert authority.revoke("alice") == alice.serial
    authority.refresh_crl()
    assert authority.ensure("RevocationNotifier").serial == alice.serial + 1


@pytest.mark.parametrize("name", ["client", "server", "RevocationNotifier"])
def test_n3_an_agent_with_a_services_name_gets_no_certificate(directory: Path, name: str) -> None:
    authority = Authority.open(directory, "pw")
    with pytest.raises(ConfigError, match=f"'{name}' cannot be the name of a machine's certificate"):
        authority.package(name)
    assert not (directory / f"{name}-cert.crt").exists()


def test_n3_an_agent_with_an_administrators_name_does_not_get_that_certificate(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "pw")
    authority.issue("alice", usage=Usage.NOTIFIER)
    with pytest.raises(ConfigError, match="was not made for a machine"):
        authority.package("alice")


def test_a_servers_certificate_is_for_its_name_or_address(directory: Path) -> None:
    authority = Authority.open(directory, "pw")
    for name in ("verifier.example.com", "192.0.2.1"):
        assert ServerNames.of(authority.issue(name, usage=Usage.SERVER).certificate).cover(name)


def test_the_configured_lifetime_counts(directory: Path) -> None:
    leaf = Authority.open(directory, "pw", CertificateSubject(lifetime_days=3)).issue("node2").certificate
    assert timedelta(days=2.9) < leaf.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=3)


def test_a_leaf_does_not_outlive_its_ca(directory: Path) -> None:
    leaf = Authority.open(directory, "pw", CertificateSubject(lifetime_days=36500)).issue("node2").certificate
    assert leaf.not_valid_after_utc == certificate_in(directory / "cacert.crt").not_valid_after_utc


def test_ensure_gives_the_same_certificate_until_it_is_revoked(directory: Path) -> None:
    authority = Authority.open(directory, "pw")
    first = authority.ensure("node1")
    assert (first.serial, first.subject) == (2, "OU=53,O=Keylime,L=Lexington,ST=MA,CN=node1,C=US")
    assert authority.ensure("node1") == first
    assert authority.revoke("node1") == 2
    assert authority.ensure("node1").serial == 3


def test_ensure_replaces_an_expired_certificate(directory: Path) -> None:
    authority = Authority.open(directory, "pw", CertificateSubject(lifetime_days=0))
    expired = authority.issue("node5")
    renewed = Authority.open(directory, "pw").ensure("node5")
    assert renewed.serial == expired.serial + 1


def test_revoked_serials_are_on_both_lists_and_stay_with_their_date(directory: Path) -> None:
    authority = Authority.open(directory, "pw")
    assert crl_serials(directory) == set()
    authority.revoke("node1")
    before = x509.load_pem_x509_crl((directory / "cacrl.pem").read_bytes())
    authority.revoke_serial(77)
    after = x509.load_pem_x509_crl((directory / "cacrl.pem").read_bytes())
    assert crl_serials(directory) == {2, 77}
    kept, known = (crl.get_revoked_certificate_by_serial_number(2) for crl in (after, before))
    assert kept is not None
    assert known is not None
    assert kept.revocation_date_utc == known.revocation_date_utc
    assert after.next_update_utc is not None
    assert after.next_update_utc > datetime.now(UTC) + timedelta(days=364)
    ca = certificate_in(directory / "cacert.crt")
    assert after.is_signature_valid(ca.public_key())  # type: ignore[arg-type]


def test_a_wrong_password_names_the_file_and_the_option(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"private\.yml: wrong password.*KEYLIME_CA_PASSWORD"):
        Authority.open(directory, "other")
    with pytest.raises(ConfigError, match="needs a password"):
        Authority.open(directory, "")


def test_creating_again_removes_what_the_old_ca_made_and_nothing_else(directory: Path) -> None:
    (directory / "notes.txt").write_text("keep")
    old = certificate_in(directory / "cacert.crt")
    Authority.create(directory, "pw2")
    assert {entry.name for entry in directory.iterdir()} == {*CA_FILES, "notes.txt"}
    assert certificate_in(directory / "cacert.crt").public_key() != old.public_key()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "ca", "lastserial", "a\nb", "-n"])
def test_a_name_that_is_no_file_name_or_is_reserved_is_refused(directory: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a certificate"):
        Authority.open(directory, "pw").issue(name)


def test_a_package_has_everything_a_machine_needs(directory: Path) -> None:
    authority = Authority.open(directory, "pw")
    data = authority.package("node1", {"autorun.sh": b"#!/bin/sh\n"})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        key = archive.read("node1-private.pem")
        notifier = archive.read("RevocationNotifier-cert.crt")
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert names == [
        "node1-public.pem",
        "node1-cert.crt",
        "node1-private.pem",
        "cacert.crt",
        "cacrl.der",
        "cacrl.pem",
        "RevocationNotifier-cert.crt",
        "autorun.sh",
    ]
    assert key == (directory / "node1-private.pem").read_bytes()
    assert notifier == (directory / "RevocationNotifier-cert.crt").read_bytes()


def test_an_included_file_cannot_replace_a_certificate(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"cacert\.crt would replace"):
        Authority.open(directory, "pw").package("node1", {"cacert.crt": b"evil"})


def test_a_saved_package_is_private(directory: Path) -> None:
    path = Authority.open(directory, "pw").write_package("node1")
    assert path.name == "node1-pkg.zip"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with zipfile.ZipFile(path) as archive:
        assert "RevocationNotifier-cert.crt" not in archive.namelist()


def test_a_ca_of_release_7_14_3_goes_on_issuing(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(CA_7_14_3, tmp_path / "ca"))
    authority = Authority.open(directory, "test-only")
    issued = authority.issue("node9")
    assert issued.serial == 4
    issued.certificate.verify_directly_issued_by(certificate_in(directory / "cacert.crt"))
    assert crl_serials_der(directory) == {2}
    authority.revoke("node9")
    assert crl_serials(directory) == {2, 4}


def crl_serials_der(directory: Path) -> set[int]:
    crl = x509.load_der_x509_crl((directory / "cacrl.der").read_bytes())
    return {revoked.serial_number for revoked in crl}


def test_an_imported_key_must_be_that_of_the_certificate(directory: Path, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "pw")
    assert other.certificate.public_key() != certificate_in(directory / "cacert.crt").public_key()
    foreign, own = (
        unseal((ca / "private.yml").read_bytes(), "pw").ca_key for ca in (tmp_path / "other", directory)
    )
    with pytest.raises(ConfigError, match="does not belong"):
        Authority.import_key(directory, "pw", foreign, 9)
    imported = Authority.import_key(directory, "new", own, 9)
    assert imported.issue("node4").serial == 10


def test_services_get_what_is_missing_and_keep_what_is_there(tmp_path: Path) -> None:
    directory = tmp_path / "cv_ca"
    made = ensure_service_certificates(directory, "default", server_sans=("localhost", "::1"), client=True)
    assert made.created == ("ca", "server", "client")
    server, client = (certificate_in(directory / f"{name}-cert.crt") for name in ("server", "client"))
    assert (server.serial_number, client.serial_number) == (2, 3)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names if isinstance(name, x509.DNSName)] == ["localhost"]
    # Nothing missing: not even the password is needed.
    assert ensure_service_certificates(directory, "", server_sans=(), client=True) == Done()
    (directory / "client-private.pem").unlink()
    assert ensure_service_certificates(directory, "default", server_sans=(), client=True).created == (
        "client",
    )
    assert certificate_in(directory / "server-cert.crt") == server
    assert certificate_in(directory / "client-cert.crt").serial_number == 4


def test_h2_an_authority_behind_a_link_is_used_and_none_is_made_there(daemons: Path, tmp_path: Path) -> None:
    linked = tmp_path / "cv_ca"
    linked.symlink_to(Path(shutil.copytree(daemons, tmp_path / "elsewhere")))
    assert ensure_service_certificates(linked, "", server_sans=(), client=True) == Done()
    (tmp_path / "elsewhere" / "client-cert.crt").unlink()
    assert ensure_service_certificates(linked, "pw", server_sans=(), client=True).created == ("client",)
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "other").symlink_to("empty")
    with pytest.raises(ConfigError, match="nothing is made through it"):
        ensure_service_certificates(tmp_path / "other", "pw", server_sans=(), client=True)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_registrar_gets_no_client_certificate_and_an_encrypted_key_if_asked(tmp_path: Path) -> None:
    directory = tmp_path / "reg_ca"
    made = ensure_service_certificates(
        directory,
        "default",
        server_sans=("x",),
        client=False,
        server_key_password="blue",  # noqa: S106 - a test password
    )
    assert made.created == ("ca", "server")
    assert not (directory / "client-cert.crt").exists()
    assert b"ENCRYPTED" in (directory / "server-private.pem").read_bytes()
    load_private_key(directory / "server-private.pem", "blue")


def test_generated_server_names_cover_the_host_but_no_wildcard() -> None:
    names = server_names("0.0.0.0", ["verifier.example", ""])  # noqa: S104 - not bound to
    assert {"localhost", "127.0.0.1", "::1", "verifier.example"} <= set(names)
    assert "0.0.0.0" not in names  # noqa: S104 - not bound to
    assert "" not in names
    assert "192.0.2.1" in server_names("192.0.2.1", [])
