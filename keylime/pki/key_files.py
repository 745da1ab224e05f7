"""Private keys in files: read, or made where there is none."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keylime.errors import ConfigError, CredentialError
from keylime.pki.certificates import PrivateKey, encode_private_key, parse_private_key
from keylime.pki.files import read_private_key_file, write_atomically

_RSA_BITS = 2048


def load_private_key(path: Path, password: str | None, *, is_tried: bool = False) -> PrivateKey:
    """The private key in the file `path`. Raises ConfigError, also when other users can touch the file.

    `is_tried` says that the caller makes a signature and verifies it, see `parse_private_key`.
    """
    try:
        return parse_private_key(read_private_key_file(path), password, is_tried=is_tried)
    except CredentialError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_or_create_ecc_key(path: Path, password: str | None) -> PrivateKey:
    """The key in `path`, of any type, or a new P-256 key saved there with mode 0600. Raises ConfigError."""
    if path.exists():
        return load_private_key(path, password)
    key = ec.generate_private_key(ec.SECP256R1())
    write_atomically(path, encode_private_key(key, password), 0o600)
    return key


def load_or_create_rsa_key(path: Path, password: str | None) -> rsa.RSAPrivateKey:
    """The RSA key in `path`, or a new RSA-2048 key saved there with mode 0600. Raises ConfigError."""
    if not path.exists():
        fresh = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
        write_atomically(path, encode_private_key(fresh, password), 0o600)
        return fresh
    key = load_private_key(path, password)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError(
            f"{path} holds no RSA key, and shares are encrypted with RSA; delete it to get a new one"
        )
    return key
