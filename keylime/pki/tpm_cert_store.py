"""The TPM certificate store: a directory with certificates of vendors that an operator trusts, read whole."""

from pathlib import Path

from keylime.errors import ConfigError, MalformedEvidence
from keylime.pki.der import OPERATORS, TolerantCertificate, read_certificate, read_pem_certificates
from keylime.pki.ek import TrustStore, trust_store
from keylime.pki.files import read_file
from keylime.safe_paths import require_safe_directory

TRUST_STORE_SUFFIXES = frozenset({".pem", ".crt", ".cer", ".der"})


def load_trust_store(directory: Path) -> TrustStore:
    """All certificates in the .pem, .crt, .cer and .der files of `directory`, each PEM (of several) or DER.

    A file that cannot be read, holds no certificate, or may be changed by others, is left out and named.
    Raises ConfigError when that is so of the directory itself.
    """
    require_safe_directory(directory)
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in TRUST_STORE_SUFFIXES)
    except OSError as error:
        raise ConfigError(
            f"the TPM certificate store {directory} cannot be read: {error.strerror}"
        ) from error
    found: list[TolerantCertificate] = []
    unreadable = []
    for path in paths:
        try:
            found.extend(_load_certificates(path))
        except ConfigError as error:
            unreadable.append(str(error))
    return trust_store(found, unreadable)


def _load_certificates(path: Path) -> tuple[TolerantCertificate, ...]:
    data = read_file(path)
    try:
        if b"-----BEGIN" in data:
            return read_pem_certificates(data, OPERATORS)
        return (read_certificate(data, OPERATORS),)
    except MalformedEvidence as error:
        raise ConfigError(f"{path} in the TPM certificate store cannot be used: {error}") from error
