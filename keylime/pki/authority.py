"""The certificate authority in a directory: its files, and what it issues and revokes.

Used by the verifier (`cv_ca`) and the registrar (`reg_ca`) for TLS between services, and by the tenant (`ca`)
for the certificates that payloads deliver to machines. Files and
packages, docs/reference/rest-api.md, 8.2 and 6.7, are shared with other Keylime releases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.errors import ConfigError, CredentialError
from keylime.payload.archive import pack_archive
from keylime.pki.authority_files import CERTIFICATE_END, STORE, checked_name
from keylime.pki.ca_directory import (
    CaDirectory,
    certificate_of,
    locked,
    read_certificate,
    require_password,
)
from keylime.pki.certificates import (
    certificate_text,
    encode_private_key,
    parse_private_key,
    public_key_text,
)
from keylime.pki.file_names import CA_CERTIFICATE
from keylime.pki.files import (
    ensure_private_directory,
    read_service_file,
    require_directory,
    write_atomically,
)
from keylime.pki.issuance import (
    CertificateSubject,
    LeafRequest,
    Usage,
    ca_certificate,
    leaf_certificate,
    new_key,
    revocation_list,
)
from keylime.pki.key_files import load_private_key
from keylime.pki.keystore import KeyStore
from keylime.pki.roles import REVOCATION_NOTIFIER, extended_usages, is_nodes, vouches_for_services

DEFAULT_SUBJECT = CertificateSubject()

_PACKAGE_MODE = 0o600
_CRL_FILES = {"cacrl.der": Encoding.DER, "cacrl.pem": Encoding.PEM}
_SERVICES = ("server", "client")  # certificates by these names are services' and administrators'
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
        self._files = CaDirectory(directory, password)
        self._subject = subject

    @classmethod
    def create(cls, directory: Path, password: str, subject: CertificateSubject = DEFAULT_SUBJECT) -> Self:
        """A new CA in `directory`, which is made if needed; certificates of an old one there are deleted.

        Raises ConfigError.
        """
        ensure_private_directory(directory)
        with locked(directory):
            return cls.create_locked(directory, password, subject, datetime.now(UTC))

    @classmethod
    def create_locked(
        cls, directory: Path, password: str, subject: CertificateSubject, now: datetime
    ) -> Self:
        """`create` for who holds the lock of the directory already."""
        require_password(password)
        key = new_key(subject)
        certificate = ca_certificate(key, subject, now)
        for entry in sorted(directory.iterdir()):
            if entry.suffix in _INIT_REMOVES or entry.name == STORE:
                entry.unlink()
        authority = cls(directory, password, subject)
        store = KeyStore(ca_key=encode_private_key(key, None), last_serial=1)
        authority._files.save(store)
        authority._write_crl(store, certificate, now)
        authority._files.write("ca-public.pem", public_key_text(key.public_key()).encode("ascii"))
        authority._files.write(CA_CERTIFICATE, certificate_text(certificate).encode("ascii"))
        return authority

    @classmethod
    def open(cls, directory: Path, password: str, subject: CertificateSubject = DEFAULT_SUBJECT) -> Self:
        """The CA in `directory`. Raises ConfigError: not there, damaged, or not its password."""
        require_password(password)
        require_directory(directory)
        authority = cls(directory, password, subject)
        store = authority._files.load()
        authority._files.issuer(store)
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
        require_password(password)
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
        with locked(directory):
            store = KeyStore(ca_key=encode_private_key(key, None), last_serial=last_serial)
            authority._files.save(store)
            authority._write_crl(store, authority.certificate, datetime.now(UTC))
        return authority

    @property
    def certificate(self) -> x509.Certificate:
        """The CA's own certificate. Raises ConfigError."""
        return self._files.certificate

    def issue(
        self,
        name: str,
        *,
        sans: Sequence[str] = (),
        usage: Usage | None = None,
        key_password: str | None = None,
    ) -> IssuedCertificate:
        """A new key and certificate for `name`, saved as its three files. Raises ConfigError.

        Without `sans` the one alternative name is `name`; without `usage` it follows from the name. An
        authority whose directory serves daemons issues none for machines.
        """
        with locked(self._directory):
            return self.issue_locked(checked_name(name), sans, usage, key_password)

    def ensure(
        self,
        name: str,
        *,
        sans: Sequence[str] = (),
        usage: Usage | None = None,
        key_password: str | None = None,
    ) -> IssuedCertificate:
        """The certificate of `name`; a new one if there is none, or it has expired or was revoked."""
        with locked(self._directory):
            return self._find(name) or self.issue_locked(checked_name(name), sans, usage, key_password)

    def ensure_node(self, name: str) -> IssuedCertificate:
        """The certificate of the machine `name`, which a payload may deliver to it; made if there is none.

        Raises ConfigError, also where the directory serves daemons, and when what is there under that name is
        an administrator's, a server's or the notifier's.
        """
        if Usage.for_name(checked_name(name)) is not Usage.NODE:
            raise ConfigError(
                f"{name!r} cannot be the name of a machine's certificate: it is that of a service; "
                "give the agent another id"
            )
        with locked(self._directory):
            self._require_no_daemons(self._files.load())
            found = self._find(name)
            if found is None:
                return self.issue_locked(name, (), Usage.NODE, None)
            if extended_usages(found.certificate) is not None and not is_nodes(found.certificate):
                raise ConfigError(
                    f"{self._directory / name}-cert.crt was not made for a machine and is not delivered to "
                    "one; give the agent another id, or name another directory"
                )
            return found

    def revoke(self, name: str) -> int:
        """Puts the certificate of `name` on the revocation list; its serial number. Raises ConfigError."""
        serial = self.serial(name)
        self.revoke_serial(serial)
        return serial

    def revoke_serial(self, serial: int) -> None:
        """Puts `serial` on the revocation list. Raises ConfigError."""
        with locked(self._directory):
            store = self._files.load().with_revoked(serial)
            self._files.save(store)
            self._write_crl(store, self._files.issuer(store), datetime.now(UTC))

    def refresh_crl(self) -> None:
        """Signs the revocation list anew with today's date. Raises ConfigError."""
        with locked(self._directory):
            self.refresh_crl_locked()

    def refresh_crl_locked(self) -> None:
        """`refresh_crl` for who holds the lock of the directory already."""
        store = self._files.load()
        self._write_crl(store, self._files.issuer(store), datetime.now(UTC))

    def serial(self, name: str) -> int:
        """The serial number of the certificate of `name`. Raises ConfigError."""
        return certificate_of(self._directory, checked_name(name)).serial_number

    def package(self, name: str, files: Mapping[str, bytes] | None = None, *, notifier: bool = True) -> bytes:
        """The zip for the machine `name`: its certificate and key, the CA's certificate and CRL, and `files`.

        With `notifier` the certificate that checks revocation messages is in it too; both are issued when
        missing. The private key in it is not encrypted: a package travels as an encrypted payload.
        Raises ConfigError, also when one of `files` has the name of a certificate file.
        """
        issued = self.ensure_node(name)
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
        path = self._directory / f"{checked_name(name)}-pkg.zip"
        write_atomically(path, self.package(name, notifier=False), _PACKAGE_MODE)
        return path

    def _find(self, name: str) -> IssuedCertificate | None:
        path = self._directory / f"{checked_name(name)}{CERTIFICATE_END}"
        private = self._directory / f"{name}-private.pem"
        if not (path.exists() and private.exists()):
            return None
        certificate = read_certificate(path)
        store = self._files.load()
        expired = certificate.not_valid_after_utc <= datetime.now(UTC)
        if expired or certificate.serial_number in store.revoked:
            return None
        pem = store.keys.get(name)
        if pem is None:
            pem = encode_private_key(load_private_key(private, None), None)
        return IssuedCertificate(name, certificate, pem.decode("ascii"))

    def issue_locked(
        self, name: str, sans: Sequence[str], usage: Usage | None, key_password: str | None
    ) -> IssuedCertificate:
        """`issue` for who holds the lock of the directory already."""
        store, usage = self._files.load(), usage or Usage.for_name(name)
        if usage is Usage.NODE:
            self._require_no_daemons(store)
        key = new_key(self._subject)
        serial = store.last_serial + 1
        request = LeafRequest(name, key.public_key(), serial, usage, sans)
        ca = self.certificate
        certificate = leaf_certificate(
            request, ca, self._files.ca_key(store), self._subject, datetime.now(UTC)
        )
        pem = encode_private_key(key, None)
        # The store goes first: a serial number is spent even if the files are never written.
        self._files.save(store.with_key(name, pem, serial))
        self._files.write(f"{name}-private.pem", encode_private_key(key, key_password))
        self._files.write(f"{name}-public.pem", public_key_text(key.public_key()).encode("ascii"))
        self._files.write(f"{name}-cert.crt", certificate_text(certificate).encode("ascii"))
        return IssuedCertificate(name, certificate, pem.decode("ascii"))

    def _require_no_daemons(self, store: KeyStore) -> None:
        """Raises ConfigError where this authority has issued certificates of servers or administrators.

        What verifier, registrar and agents take for proof of an administrator must not be handed to machines.
        """
        sign = next((name for name in _SERVICES if name in store.keys), None) or self._service_file()
        if sign is not None:
            raise ConfigError(
                f"the CA in {self._directory} serves daemons (it made {sign}), so it makes no certificates "
                "for machines: use another directory, such as `ca` in the working directory, the default of "
                "keylime_ca and of keylime_tenant --cert; `keylime_ca -c init -d DIR` makes a new one"
            )

    def _service_file(self) -> str | None:
        """A file in the directory that belongs to a server or administrator."""
        for name in _SERVICES:
            for end in ("cert.crt", "private.pem"):
                if (self._directory / f"{name}-{end}").exists():
                    return f"{name}-{end}"
        for path in sorted(self._directory.glob("*-cert.crt")):
            try:
                if vouches_for_services(read_certificate(path)):
                    return path.name
            except (ConfigError, ValueError):
                continue  # not one of ours, or damaged: whoever needs it will say so
        return None

    def _write_crl(self, store: KeyStore, ca: x509.Certificate, now: datetime) -> None:
        crl = revocation_list(
            store.revoked,
            ca,
            self._files.ca_key(store),
            previous=self._previous_crl(ca),
            lifetime_days=self._subject.lifetime_days,
            now=now,
        )
        for name, encoding in _CRL_FILES.items():
            self._files.write(name, crl.public_bytes(encoding))

    def _previous_crl(self, ca: x509.Certificate) -> x509.CertificateRevocationList | None:
        path = self._directory / "cacrl.der"
        if not path.exists():
            return None
        try:
            crl = x509.load_der_x509_crl(read_service_file(path))
        except ValueError:
            return None  # it holds nothing that cannot be written anew
        return crl if crl.issuer == ca.subject else None
