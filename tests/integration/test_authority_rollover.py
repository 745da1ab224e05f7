"""The steps of giving an authority another key, in their order, and again after a crash."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keylime.errors import ConfigError
from keylime.pki.authority import Authority
from keylime.pki.ca_directory import CaDirectory, read_certificate
from keylime.pki.issuance import CertificateSubject
from keylime.pki.keystore import FORMER_CA, NEXT_CA
from keylime.pki.renewal import Renewal
from keylime.pki.rollover import Rollover, is_issued_by
from keylime.pki.service_certificates import ensure_service_certificates

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rollover") / "cv_ca"
    ensure_service_certificates(directory, "pw", server_sans=("localhost",), client=True)
    return directory


@pytest.fixture
def directory(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "cv_ca"))


def rollover(directory: Path, days: float = 0) -> Rollover:
    files = CaDirectory(directory, "pw")
    return Rollover(Renewal(files, CertificateSubject(), NOW + timedelta(days=days)))


def test_each_step_names_the_one_before_it(directory: Path) -> None:
    steps = rollover(directory)
    with pytest.raises(ConfigError, match=r"there is no next CA .*`keylime_ca -c roll -d "):
        steps.switch()
    with pytest.raises(ConfigError, match="there is nothing to drop"):
        steps.drop(force=False)
    steps.begin()
    with pytest.raises(ConfigError, match=r"trusted already .*`keylime_ca -c roll --switch -d "):
        steps.begin()
    with pytest.raises(ConfigError, match=r"does not issue yet .*`keylime_ca -c roll --switch -d "):
        steps.drop(force=True)
    steps.switch()
    with pytest.raises(ConfigError, match=r"still trusted .*`keylime_ca -c roll --drop -d "):
        steps.begin()
    assert steps.drop(force=False) == 1


def test_the_authority_works_between_the_steps_and_after_a_crash_within_them(directory: Path) -> None:
    files, steps = CaDirectory(directory, "pw"), rollover(directory)
    old = files.certificate
    before_begin = (directory / "cacert.crt").read_bytes()
    steps.begin()
    (directory / "cacert.crt").write_bytes(before_begin)  # the key was written, and the certificate was not
    new = steps.begin()
    assert NEXT_CA in files.load().keys
    assert files.trusted == (old, new)
    assert new.subject != old.subject
    both = (directory / "cacert.crt").read_bytes()
    former = (directory / "client-cert.crt").read_bytes()
    assert steps.switch().renewed == ("client", "server")
    (directory / "cacert.crt").write_bytes(both)  # a crash in the middle: the key is changed, the rest is not
    (directory / "client-cert.crt").write_bytes(former)
    Authority.open(directory, "pw")
    assert steps.switch().renewed == ("client",)
    assert files.trusted == (new, old)
    assert FORMER_CA in files.load().keys
    assert is_issued_by(read_certificate(directory / "client-cert.crt"), new)
    assert steps.drop(force=False) == 1
    assert list(files.trusted) == [new]
    assert {FORMER_CA, NEXT_CA}.isdisjoint(files.load().keys)


def test_what_the_former_authority_has_issued_keeps_it_trusted(directory: Path) -> None:
    steps = rollover(directory)
    former = (directory / "client-cert.crt").read_bytes()
    steps.begin()
    steps.switch()
    (directory / "client-cert.crt").write_bytes(former)
    with pytest.raises(ConfigError, match=r"of the former CA are in .*: client; make them anew .*--force"):
        steps.drop(force=False)
    assert rollover(directory, days=366).drop(force=False) == 1  # it has ended meanwhile


def test_a_renewal_during_the_change_keeps_both_authorities(directory: Path) -> None:
    steps, files = rollover(directory), CaDirectory(directory, "pw")
    new = steps.begin()
    renewed = steps.renewal.authority()
    assert files.trusted == (renewed, new)
    late = rollover(directory, days=3651).renewal.authority()
    assert list(files.trusted) == [late]  # what has ended is no longer trusted
