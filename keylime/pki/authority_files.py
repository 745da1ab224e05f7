"""What the files of a certificate authority are called, and what is asked of who keeps them.

Pure: `ca_directory` keeps them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from cryptography import x509

from keylime.errors import ConfigError, MalformedMessage
from keylime.identifiers import parse_agent_id
from keylime.pki.certificates import PrivateKey
from keylime.pki.keystore import RESERVED_NAMES, KeyStore

CERTIFICATE_END = "-cert.crt"
STORE = "private.yml"


class AuthorityFiles(Protocol):
    """The files of one authority. Everything raises ConfigError for what cannot be read or written."""

    @property
    def path(self) -> Path:
        """Their directory."""
        ...

    @property
    def certificate(self) -> x509.Certificate:
        """The CA's own certificate."""
        ...

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """The CA's own, and those beside it while it is rolled over."""
        ...

    def issuer(self, store: KeyStore, /) -> x509.Certificate:
        """The one of them that `store` has the key of."""
        ...

    def load(self) -> KeyStore:
        """The keys and serial numbers."""
        ...

    def save(self, store: KeyStore, /) -> None:
        """Replaces the keys and serial numbers."""
        ...

    def ca_key(self, store: KeyStore, /) -> PrivateKey:
        """The key that certificates are signed with."""
        ...

    def issued_names(self) -> tuple[str, ...]:
        """The names that have a certificate."""
        ...

    def certificate_of(self, name: str, /) -> x509.Certificate:
        """The certificate of `name`."""
        ...

    def write(self, name: str, data: bytes, /) -> None:
        """Replaces the file `name`."""
        ...

    def write_trusted(self, certificates: Iterable[x509.Certificate], /) -> None:
        """Replaces those that are trusted, the issuing one first."""
        ...


def checked_name(name: str) -> str:
    """`name`, if a certificate may have it. Raises ConfigError."""
    try:
        parse_agent_id(name)
    except MalformedMessage as error:
        raise ConfigError(f"{name!r} cannot be the name of a certificate: {error}") from error
    if name in RESERVED_NAMES:
        raise ConfigError(f"{name!r} cannot be the name of a certificate: the CA uses it itself")
    return name
