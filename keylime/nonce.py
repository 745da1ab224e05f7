"""Nonces for quotes, and other texts that nobody can guess: the one place they come from."""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 20
# Bytes that come to a character, each character by as many of them; the others are left out.
_USED = 256 - 256 % len(_ALPHABET)
_UNUSED = bytes(range(_USED, 256))
_CHARACTERS = bytes(ord(_ALPHABET[byte % len(_ALPHABET)]) for byte in range(256))


def new_nonce() -> str:
    """A fresh nonce: 20 characters of [A-Za-z0-9] (119 bits) from the system's CSPRNG.

    Its ASCII text is what the TPM signs; 20 bytes fit the qualifying data of every TPM
    (docs/reference/rest-api.md, 3.3).
    """
    return random_text(_LENGTH)


def random_text(length: int) -> str:
    """`length` independent characters of [A-Za-z0-9] from the system's CSPRNG."""
    found = b""
    while len(found) < length:
        # Mostly one draw for all of them, as each draw is a system call: of 32 bytes one is left out.
        found += secrets.token_bytes(length + length // 4 + 8).translate(_CHARACTERS, _UNUSED)
    return found[:length].decode("ascii")
