"""The files of a certificate authority: where they are, who may read them, one writer at a time.

Files and packages, docs/reference/rest-api.md, 8.2 and 6.7, are shared with other Keylime releases.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from keylime.errors import ConfigError, CredentialError
from keylime.pki.authority_files import CERTIFICATE_END, STORE
from keylime.pki.certificates import PrivateKey, certificate_text, parse_certificate, parse_private_key
from keylime.pki.der import PARSER_ERRORS, unreadable
from keylime.pki.file_names import CA_CERTIFICATE
from keylime.pki.files import read_service_file, replace_keeping_access, require_directory
from keylime.pki.keystore import KeyStore, seal, unseal

_FILE_MODE = 0o640


@dataclass(frozen=True, slots=True)
class CaDirectory:
    """The directory of one authority, and the password of its key store."""

    path: Path
    password: str = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        """The CA's own certificate. Raises ConfigError."""
        return read_certificate(self.path / CA_CERTIFICATE)

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """All certificates in the file of the CA's own: more than one while it is rolled over.

        Raises ConfigError.
        """
        return read_certificates(self.path / CA_CERTIFICATE)

    def issuer(self, store: KeyStore) -> x509.Certificate:
        """The one of them that `store` has the key of. Raises ConfigError."""
        public_key = self.ca_key(store).public_key()
        for certificate in self.trusted:
            if certificate.public_key() == public_key:
                return certificate
        raise ConfigError(f"{self.path / STORE} does not hold the key of {self.path / CA_CERTIFICATE}")

    def load(self) -> KeyStore:
        """The keys and serial numbers. Raises ConfigError."""
        path = self.path / STORE
        try:
            return unseal(read_service_file(path), self.password)
        except CredentialError as error:
            raise ConfigError(f"{path}: {error}; see [ca] password and KEYLIME_CA_PASSWORD") from error

    def save(self, store: KeyStore) -> None:
        """Replaces the keys and serial numbers. Raises ConfigError."""
        self.write(STORE, seal(store, self.password))

    def ca_key(self, store: KeyStore) -> PrivateKey:
        """The key that certificates are signed with. Raises ConfigError."""
        try:
            return parse_private_key(store.ca_key, None)
        except CredentialError as error:
            raise ConfigError(f"{self.path / STORE}: the CA key is damaged: {error}") from error

    def issued_names(self) -> tuple[str, ...]:
        """The names that have a certificate here."""
        return issued_names(self.path)

    def certificate_of(self, name: str) -> x509.Certificate:
        """The certificate of `name`. Raises ConfigError."""
        return certificate_of(self.path, name)

    def write(self, name: str, data: bytes) -> None:
        """Replaces the file `name`, which keeps its owner and mode. Raises ConfigError."""
        replace_keeping_access(self.path / name, data, _FILE_MODE)

    def write_trusted(self, certificates: Iterable[x509.Certificate]) -> None:
        """Replaces those that are trusted, the issuing one first. Raises ConfigError."""
        texts = dict.fromkeys(certificate_text(certificate) for certificate in certificates)
        self.write(CA_CERTIFICATE, "".join(texts).encode("ascii"))


def require_password(password: str) -> None:
    """Raises ConfigError for an empty one."""
    if not password:
        raise ConfigError("the CA needs a password: set [ca] password or KEYLIME_CA_PASSWORD")


def issued_names(directory: Path) -> tuple[str, ...]:
    """The names that have a certificate in the directory of an authority."""
    return tuple(
        sorted(path.name.removesuffix(CERTIFICATE_END) for path in directory.glob(f"*{CERTIFICATE_END}"))
    )


def certificate_of(directory: Path, name: str) -> x509.Certificate:
    """The certificate of `name` in the directory of an authority. Raises ConfigError."""
    return read_certificate(directory / f"{name}{CERTIFICATE_END}")


def read_certificate(path: Path) -> x509.Certificate:
    """The (first) certificate in a file of the authority. Raises ConfigError."""
    try:
        return parse_certificate(read_service_file(path))
    except CredentialError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """All certificates in a PEM file of the authority, at least one. Raises ConfigError."""
    data = read_service_file(path)
    if data.count(b"-----BEGIN") < 2:
        return (read_certificate(path),)
    try:
        found = x509.load_pem_x509_certificates(data)
        _ = [(one.subject, one.extensions, one.public_key()) for one in found]
    except PARSER_ERRORS as error:
        raise ConfigError(f"{path}: not X.509 certificates: {unreadable(data, error)}") from error
    return tuple(found)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other processes from changing the CA in `directory` meanwhile."""
    require_directory(directory)
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"directory {directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
