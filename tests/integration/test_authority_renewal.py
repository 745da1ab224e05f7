"""Certificates of services get new dates in place, once, and whoever trusted the old ones goes on."""

import shutil
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keylime.errors import ConfigError
from keylime.pki.authority import Authority
from keylime.pki.ca_directory import CaDirectory
from keylime.pki.certificates import parse_certificate
from keylime.pki.issuance import CertificateSubject
from keylime.pki.key_files import load_private_key
from keylime.pki.renewal import Renewal
from keylime.pki.service_certificates import Done, RenewalImpossible, ensure_service_certificates
from tests.fakes.tls_material import Authority as Root

NOW = datetime.now(UTC)
SUBJECT = CertificateSubject()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("renewal") / "cv_ca"
    ensure(directory, 0)
    return directory


@pytest.fixture
def directory(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "cv_ca"))


PASSWORD = "pw"  # noqa: S105


def ensure(directory: Path, days: float, password: str = PASSWORD) -> Done:
    return ensure_service_certificates(
        directory,
        password,
        SUBJECT,
        server_sans=("localhost", "127.0.0.1"),
        client=True,
        now=NOW + timedelta(days=days),
    )


def certificate(directory: Path, name: str) -> x509.Certificate:
    return parse_certificate((directory / name).read_bytes())


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (-1, ()),
        (334, ()),
        (336, ("server", "client")),
        (366, ("server", "client")),
        (3651, ("ca", "server", "client")),
    ],
)
def test_what_is_due_gets_new_dates_and_nothing_else(
    directory: Path, days: float, expected: tuple[str, ...]
) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    old = {name: certificate(directory, f"{name}-cert.crt") for name in ("server", "client")}
    ca = certificate(directory, "cacert.crt")
    assert ensure(directory, days) == Done(renewed=expected)
    assert ensure(directory, days, "") == Done()  # once: not even the password is needed
    changed = {path.name for path in directory.iterdir() if before.get(path.name) != path.read_bytes()}
    named = {"cacert.crt"} if "ca" in expected else set()
    store = {"private.yml", "cacrl.pem", "cacrl.der"} if expected else set()
    assert changed == {f"{name}-cert.crt" for name in expected if name != "ca"} | named | store
    for name, former in old.items():
        renewed = certificate(directory, f"{name}-cert.crt")
        assert renewed.public_key() == former.public_key()
        assert renewed.subject == former.subject
        names, usages = x509.SubjectAlternativeName, x509.ExtendedKeyUsage
        for kind in (names, usages):
            assert renewed.extensions.get_extension_for_class(
                kind
            ) == former.extensions.get_extension_for_class(kind)
        renewed.verify_directly_issued_by(certificate(directory, "cacert.crt"))
        renewed.verify_directly_issued_by(ca)  # whoever has the old CA certificate trusts the new leaf
        if name in expected:
            left = renewed.not_valid_after_utc - (NOW + timedelta(days=days))
            assert left == pytest.approx(timedelta(days=365), abs=timedelta(minutes=1))
            assert renewed.serial_number > former.serial_number


def test_a_clock_that_was_ahead_for_a_while_leaves_nothing_behind(directory: Path) -> None:
    assert ensure(directory, 400).renewed == ("server", "client")
    assert ensure(directory, 1) == Done(renewed=("server", "client"))
    assert certificate(directory, "server-cert.crt").not_valid_before_utc < NOW + timedelta(days=1)
    assert ensure(directory, 1) == Done()


def test_an_authority_that_is_renewed_signs_what_fits_the_old_one_too(directory: Path) -> None:
    old = certificate(directory, "cacert.crt")
    ensure(directory, 3300)
    new = certificate(directory, "cacert.crt")
    assert (new.subject, new.public_key()) == (old.subject, old.public_key())
    assert new.serial_number != old.serial_number
    assert new.not_valid_after_utc > old.not_valid_after_utc
    assert [one.oid for one in new.extensions] == [one.oid for one in old.extensions]
    Authority.open(directory, "pw")


def test_the_key_and_the_modes_stay(directory: Path) -> None:
    (directory / "server-cert.crt").chmod(0o644)
    (directory / "client-cert.crt").chmod(0o600)
    before = {path.name: path.stat() for path in directory.iterdir()}
    ensure(directory, 350)
    for path in directory.iterdir():
        status = path.stat()
        was = before[path.name]
        assert status.st_mode == was.st_mode, path
    assert stat.S_IMODE((directory / "server-cert.crt").stat().st_mode) == 0o644


def test_key_and_certificate_fit_at_every_moment(directory: Path) -> None:
    stop, misfits = threading.Event(), []

    def watch() -> None:
        key = load_private_key(directory / "client-private.pem", None).public_key()
        while not stop.is_set():
            if certificate(directory, "client-cert.crt").public_key() != key:
                misfits.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert "client" in ensure(directory, 340).renewed
    finally:
        stop.set()
        watcher.join()
    assert not misfits


def test_many_processes_that_share_a_directory_renew_once(directory: Path) -> None:
    serial = certificate(directory, "client-cert.crt").serial_number
    done: list[Done] = []
    threads = [threading.Thread(target=lambda: done.append(ensure(directory, 350))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done, key=lambda one: one.renewed) == [Done()] * 3 + [Done(renewed=("server", "client"))]
    assert certificate(directory, "client-cert.crt").serial_number == serial + 2


@pytest.mark.parametrize("days", [340, 366])
def test_without_the_key_of_the_ca_it_is_said_what_to_type(directory: Path, days: float) -> None:
    (directory / "private.yml").unlink()
    before = (directory / "client-cert.crt").read_bytes()
    assert ensure(directory, 300) == Done()
    with pytest.raises(
        RenewalImpossible, match=r"server, client in .*private\.yml.*`keylime_ca -c renew -d "
    ):
        ensure(directory, days)
    assert (directory / "client-cert.crt").read_bytes() == before


def test_a_wrong_password_of_the_ca_is_named(directory: Path) -> None:
    with pytest.raises(RenewalImpossible, match=r"wrong password.*KEYLIME_CA_PASSWORD"):
        ensure(directory, 340, "another")


def test_what_was_revoked_or_says_no_purpose_is_not_renewed(directory: Path) -> None:
    renewal = Renewal(CaDirectory(directory, "pw"), SUBJECT, NOW)
    Authority.open(directory, "pw").revoke("client")
    with pytest.raises(ConfigError, match="client was revoked"):
        renewal.leaf("client")
    (directory / "somebody-cert.crt").write_text(Root().issue("somebody").pem)
    with pytest.raises(ConfigError, match=r"somebody does not say what it is for.*--role"):
        renewal.leaf("somebody")


def test_an_authority_that_another_one_issued_is_renewed_there(directory: Path) -> None:
    """Its certificate can only be signed by whoever signed it before."""
    root = Root("Root")
    issued = root.issue("Intermediate", ca=True, days=(-100, 1))
    shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
    (directory / "cacert.crt").write_text(issued.pem)
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    Authority.import_key(directory, "pw", key, 1)
    with pytest.raises(ConfigError, match=r"was issued by CN=Root: renew it there"):
        Renewal(CaDirectory(directory, "pw"), SUBJECT, NOW).authority()


def test_an_authority_that_is_renewed_elsewhere_does_not_keep_its_certificates_from_it(
    directory: Path,
) -> None:
    """It issues them for as long as it lives, although it should have been renewed long ago."""
    issued = Root("Root").issue("Intermediate", ca=True, days=(0, 730))
    shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
    (directory / "cacert.crt").write_text(issued.pem)
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    Authority.import_key(directory, "pw", key, 1)
    start = (issued.certificate.not_valid_before_utc - NOW) / timedelta(days=1)
    assert ensure(directory, start + 1).created == ("server", "client")
    assert ensure(directory, start + 340) == Done(renewed=("server", "client"))
    assert ensure(directory, start + 680) == Done(renewed=("server", "client"))
    assert ensure(directory, start + 720) == Done(), "they end with their authority"


def test_one_that_was_revoked_does_not_keep_the_others_from_it(directory: Path) -> None:
    Authority.open(directory, PASSWORD).revoke("server")
    with pytest.raises(RenewalImpossible, match=r"^server in .* was revoked"):
        ensure(directory, 340)
    days = certificate(directory, "client-cert.crt").not_valid_after_utc - NOW
    assert days > timedelta(days=600)
