"""The key that signs policies, wherever it is kept: in a file, in a token behind PKCS#11, in a TPM."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from keylime.documents.dsse import PolicySigner
from keylime.errors import ConfigError
from keylime.token_keys import SCHEME, TPM_KEY, open_tpm_key, token_key


@contextmanager
def signing_key(
    option: str, place: str, environ: Mapping[str, str], read: Callable[[str, str], bytes]
) -> Iterator[PolicySigner]:
    """The elliptic-curve key that `option` names, while it may be used. Raises ConfigError.

    `place` is a PKCS#11 URI or a file, which `read` reads: PEM, as it is or as a TPM alone can load it.
    """
    if place.startswith(SCHEME):
        with token_key(option, place, environ) as key:
            yield key
        return
    pem = read(option, place)
    is_of_tpm = pem.startswith(TPM_KEY)
    yield open_tpm_key(option, place, pem, environ) if is_of_tpm else load_key(option, place, pem)


def load_key(option: str, path: str, pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The key in the file of `option`. Raises ConfigError."""
    try:
        key = load_pem_private_key(pem, None)
    except TypeError as error:
        raise ConfigError(f"{option} {path}: the key is encrypted; decrypt it first") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{option} {path}: no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{option} {path}: policies are signed with elliptic-curve keys, this is another")
    return key
