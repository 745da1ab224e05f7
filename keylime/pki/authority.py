"""The certificate authority in a directory: its files, and what it issues and revokes (rest-api 8.2, 6.7).

Used by the verifier (`cv_ca`) and the registrar (`reg_ca`) for TLS between services, and by the tenant (`ca`)
for the certificates that payloads deliver to machines. The format is shared with other Keylime releases.
"""

import fcntl
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.errors import ConfigError, CredentialError, MalformedMessage
from keylime.identifiers import parse_agent_id
from keylime.payload.bundle import pack_archive
from keylime.pki.certificates import (
    PrivateKey,
    certificate_text,
    encode_private_key,
    load_private_key,
    parse_certificate,
    parse_private_key,
    public_key_text,
)
from keylime.pki.files import (
    ensure_private_directory,
    read_service_file,
    require_directory,
    write_atomically,
)
from keylime.pki.issuance import (
    REVOCATION_NOTIFIER,
    CertificateSubject,
    LeafRequest,
    Usage,
    ca_certificate,
    leaf_certificate,
    revocation_list,
)
from keylime.pki.keystore import RESERVED_NAMES, KeyStore, seal, unseal

CA_CERTIFICATE = "cacert.crt"
DEFAULT_SUBJECT = CertificateSubject()

_FILE_MODE = 0o640
_PACKAGE_MODE = 0o600
_STORE = "private.yml"
_CRL_FILES = {"cacrl.der": Encoding.DER, "cacrl.pem": Encoding.PEM}
_INIT_REMOVES = (".pem", ".crt", ".zip", ".der")


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate with its key; `private_key_pem` is not encrypted."""

    name: str
    certificate: x509.Certificate
    private_key_pem: str = field(repr=False)

    @property
    def certificate_pem(self) -> str:
        """The certificate as PEM."""
        return certificate_text(self.certificate)

    @property
    def serial(self) -> int:
        """The serial number, `cert_serial` in an agent's metadata."""
        return self.certificate.serial_number

    @property
    def subject(self) -> str:
        """The distinguished name in the order of RFC 4514, `subject` in an agent's metadata."""
        return self.certificate.subject.rfc4514_string()


class Authority:
    """A certificate authority whose directory is complete and whose password is right."""

    def __init__(self, directory: Path, password: str, subject: CertificateSubject) -> None:
        self._directory = directory
        self._password = password
        self._subject = subject

    @classmethod
    def create(cls, directory: Path, password: str, subject: CertificateSubject = DEFAULT_SUBJECT) -> Self:
        """A new CA in `directory`, which is made if needed; certificates of an old one there are deleted.

        Raises ConfigError.
        """
        ensure_private_directory(directory)
        with _locked(directory):
            return cls._create(directory, password, subject, datetime.now(UTC))

    @classmethod
    def _create(cls, directory: Path, password: str, subject: CertificateSubject, now: datetime) -> Self:
        _require_password(password)
        key = _new_key(subject)
        certificate = ca_certificate(key, subject, now)
        for entry in sorted(directory.iterdir()):
            if entry.suffix in _INIT_REMOVES or entry.name == _STORE:
                entry.unlink()
        authority = cls(directory, password, subject)
        store = KeyStore(ca_key=encode_private_key(key, None), last_serial=1)
        authority._save(store)
        authority._write_crl(store, certificate, now)
        authority._write("ca-public.pem", public_key_text(key.public_key()).encode("ascii"))
        authority._write(CA_CERTIFICATE, certificate_text(certificate).encode("ascii"))
        return authority

    @classmethod
    def open(cls, directory: Path, password: str, subject: CertificateSubject = DEFAULT_SUBJECT) -> Self:
        """The CA in `directory`. Raises ConfigError: not there, damaged, or not its password."""
        _require_password(password)
        require_directory(directory)
        authority = cls(directory, password, subject)
        store = authority._load()
        if authority._ca_key(store).public_key() != authority.certificate.public_key():
            raise ConfigError(f"{directory / _STORE} does not hold the key of {directory / CA_CERTIFICATE}")
        return authority

    @classmethod
    def import_key(
        cls,
        directory: Path,
        password: str,
        key_pem: bytes,
        last_serial: int,
        subject: CertificateSubject = DEFAULT_SUBJECT,
    ) -> Self:
        """The CA whose `cacert.crt` is in `directory` and whose unencrypted key comes from elsewhere.

        Serial numbers go on after `last_serial`. Raises ConfigError.
        """
        _require_password(password)
        require_directory(directory)
        authority = cls(directory, password, subject)
        try:
            key = parse_private_key(key_pem, None)
        except CredentialError as error:
            raise ConfigError(f"the CA key cannot be imported: {error}") from error
        if key.public_key() != authority.certificate.public_key():
            raise ConfigError(f"the imported key does not belong to {directory / CA_CERTIFICATE}")
        if last_serial < 1:
            raise ConfigError(f"serial number {last_serial} is not positive")
        with _locked(directory):
            store = KeyStore(ca_key=encode_private_key(key, None), last_serial=last_serial)
            authority._save(store)
            authority._write_crl(store, authority.certificate, datetime.now(UTC))
        return authority

    @property
    def certificate(self) -> x509.Certificate:
        """The CA's own certificate. Raises ConfigError."""
        return _read_certificate(self._directory / CA_CERTIFICATE)

    def issue(
        self,
        name: str,
        *,
        sans: Sequence[str] = (),
        usage: Usage | None = None,
        key_password: str | None = None,
    ) -> IssuedCertificate:
        """A new key and certificate for `name`, saved as its three files. Raises ConfigError.

        Without `sans` the one alternative name is `name`; without `usage` it follows from the name.
        """
        with _locked(self._directory):
            return self._issue(_checked_name(name), sans, usage, key_password)

    def ensure(
        self,
        name: str,
        *,
        sans: Sequence[str] = (),
        usage: Usage | None = None,
        key_password: str | None = None,
    ) -> IssuedCertificate:
        """The certificate of `name`; a new one if there is none, or it has expired or was revoked."""
        with _locked(self._directory):
            return self._find(name) or self._issue(_checked_name(name), sans, usage, key_password)

    def revoke(self, name: str) -> int:
        """Puts the certificate of `name` on the revocation list; its serial number. Raises ConfigError."""
        serial = self.serial(name)
        self.revoke_serial(serial)
        return serial

    def revoke_serial(self, serial: int) -> None:
        """Puts `serial` on the revocation list. Raises ConfigError."""
        with _locked(self._directory):
            store = self._load().with_revoked(serial)
            self._save(store)
            self._write_crl(store, self.certificate, datetime.now(UTC))

    def refresh_crl(self) -> None:
        """Signs the revocation list anew with today's date. Raises ConfigError."""
        with _locked(self._directory):
            self._write_crl(self._load(), self.certificate, datetime.now(UTC))

    def serial(self, name: str) -> int:
        """The serial number of the certificate of `name`. Raises ConfigError."""
        return _read_certificate(self._directory / f"{_checked_name(name)}-cert.crt").serial_number

    def package(self, name: str, files: Mapping[str, bytes] | None = None, *, notifier: bool = True) -> bytes:
        """The zip for the machine `name`: its certificate and key, the CA's certificate and CRL, and `files`.

        With `notifier` the certificate that checks revocation messages is in it too; both are issued when
        missing. The private key in it is not encrypted: a package travels as an encrypted payload.
        Raises ConfigError, also when one of `files` has the name of a certificate file.
        """
        issued = self.ensure(name)
        contents = {
            f"{name}-public.pem": read_service_file(self._directory / f"{name}-public.pem"),
            f"{name}-cert.crt": issued.certificate_pem.encode("ascii"),
            f"{name}-private.pem": issued.private_key_pem.encode("ascii"),
            CA_CERTIFICATE: read_service_file(self._directory / CA_CERTIFICATE),
        }
        contents |= {crl: read_service_file(self._directory / crl) for crl in _CRL_FILES}
        if notifier:
            certificate = self.ensure(REVOCATION_NOTIFIER).certificate_pem
            contents[f"{REVOCATION_NOTIFIER}-cert.crt"] = certificate.encode("ascii")
        clash = sorted(contents.keys() & (files or {}).keys())
        if clash:
            raise ConfigError(f"included file {clash[0]} would replace a file of the certificate package")
        return pack_archive({**contents, **(files or {})})

    def write_package(self, name: str) -> Path:
        """Saves the package of `name` without the notifier's certificate as `<name>-pkg.zip`; its path."""
        path = self._directory / f"{_checked_name(name)}-pkg.zip"
        write_atomically(path, self.package(name, notifier=False), _PACKAGE_MODE)
        return path

    def _find(self, name: str) -> IssuedCertificate | None:
        path = self._directory / f"{_checked_name(name)}-cert.crt"
        private = self._directory / f"{name}-private.pem"
        if not (path.exists() and private.exists()):
            return None
        certificate = _read_certificate(path)
        store = self._load()
        expired = certificate.not_valid_after_utc <= datetime.now(UTC)
        if expired or certificate.serial_number in store.revoked:
            return None
        pem = store.keys.get(name)
        if pem is None:
            pem = encode_private_key(load_private_key(private, None), None)
        return IssuedCertificate(name, certificate, pem.decode("ascii"))

    def _issue(
        self, name: str, sans: Sequence[str], usage: Usage | None, key_password: str | None
    ) -> IssuedCertificate:
        store = self._load()
        key = _new_key(self._subject)
        serial = store.last_serial + 1
        request = LeafRequest(name, key.public_key(), serial, usage or Usage.for_name(name), sans)
        ca = self.certificate
        certificate = leaf_certificate(request, ca, self._ca_key(store), self._subject, datetime.now(UTC))
        pem = encode_private_key(key, None)
        # The store goes first: a serial number is spent even if the files are never written.
        self._save(store.with_key(name, pem, serial))
        self._write(f"{name}-private.pem", encode_private_key(key, key_password))
        self._write(f"{name}-public.pem", public_key_text(key.public_key()).encode("ascii"))
        self._write(f"{name}-cert.crt", certificate_text(certificate).encode("ascii"))
        return IssuedCertificate(name, certificate, pem.decode("ascii"))

    def _write_crl(self, store: KeyStore, ca: x509.Certificate, now: datetime) -> None:
        crl = revocation_list(
            store.revoked,
            ca,
            self._ca_key(store),
            previous=self._previous_crl(ca),
            lifetime_days=self._subject.lifetime_days,
            now=now,
        )
        for name, encoding in _CRL_FILES.items():
            self._write(name, crl.public_bytes(encoding))

    def _previous_crl(self, ca: x509.Certificate) -> x509.CertificateRevocationList | None:
        path = self._directory / "cacrl.der"
        if not path.exists():
            return None
        try:
            crl = x509.load_der_x509_crl(read_service_file(path))
        except ValueError:
            return None  # it holds nothing that cannot be written anew
        return crl if crl.issuer == ca.subject else None

    def _ca_key(self, store: KeyStore) -> PrivateKey:
        try:
            return parse_private_key(store.ca_key, None)
        except CredentialError as error:
            raise ConfigError(f"{self._directory / _STORE}: the CA key is damaged: {error}") from error

    def _load(self) -> KeyStore:
        path = self._directory / _STORE
        try:
            return unseal(read_service_file(path), self._password)
        except CredentialError as error:
            raise ConfigError(f"{path}: {error}; see [ca] password and KEYLIME_CA_PASSWORD") from error

    def _save(self, store: KeyStore) -> None:
        self._write(_STORE, seal(store, self._password))

    def _write(self, name: str, data: bytes) -> None:
        write_atomically(self._directory / name, data, _FILE_MODE)


def ensure_service_certificates(
    directory: Path,
    password: str,
    subject: CertificateSubject = DEFAULT_SUBJECT,
    *,
    server_sans: Sequence[str],
    client: bool,
    server_key_password: str | None = None,
    client_key_password: str | None = None,
) -> tuple[str, ...]:
    """Makes what a service lacks in its CA directory: everything, or only a missing or expired pair.

    Returns what was made ("ca", "server", "client"), for the log. When nothing is missing the password is
    not needed. Raises ConfigError.
    """
    wanted = {"server": (tuple(server_sans), server_key_password)}
    if client:
        wanted["client"] = ((), client_key_password)
    ensure_private_directory(directory)
    with _locked(directory):
        made = []
        if (directory / CA_CERTIFICATE).exists():
            missing = [name for name in wanted if _is_missing(directory, name)]
            if not missing:
                return ()
            authority = Authority.open(directory, password, subject)
        else:
            authority = Authority._create(directory, password, subject, datetime.now(UTC))
            missing, made = list(wanted), ["ca"]
        for name in missing:
            sans, key_password = wanted[name]
            authority._issue(name, sans, None, key_password)
        return (*made, *missing)


def server_names(bind_address: str, extra: Iterable[str]) -> tuple[str, ...]:
    """The names for a generated server certificate: this host's, the address it listens on, and `extra`."""
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn(), *extra}
    if bind_address not in ("", "0.0.0.0", "::"):  # noqa: S104 - compared with, not bound to
        names.add(bind_address)
    return tuple(sorted(names - {""}))


def _is_missing(directory: Path, name: str) -> bool:
    certificate = directory / f"{name}-cert.crt"
    if not (certificate.exists() and (directory / f"{name}-private.pem").exists()):
        return True
    return _read_certificate(certificate).not_valid_after_utc <= datetime.now(UTC)


def _checked_name(name: str) -> str:
    try:
        parse_agent_id(name)
    except MalformedMessage as error:
        raise ConfigError(f"{name!r} cannot be the name of a certificate: {error}") from error
    if name in RESERVED_NAMES:
        raise ConfigError(f"{name!r} cannot be the name of a certificate: the CA uses it itself")
    return name


def _require_password(password: str) -> None:
    if not password:
        raise ConfigError("the CA needs a password: set [ca] password or KEYLIME_CA_PASSWORD")


def _new_key(subject: CertificateSubject) -> rsa.RSAPrivateKey:
    try:
        return rsa.generate_private_key(public_exponent=65537, key_size=subject.key_bits)
    except ValueError as error:
        raise ConfigError(f"[ca] cert_bits = {subject.key_bits} cannot be used: {error}") from error


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return parse_certificate(read_service_file(path))
    except CredentialError as error:
        raise ConfigError(f"{path}: {error}") from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keeps other processes from changing the CA in `directory` meanwhile."""
    require_directory(directory)
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"directory {directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
