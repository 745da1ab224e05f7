"""Nonces for quotes: the one place they come from."""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 20
_NONCES = len(_ALPHABET) ** _LENGTH


def new_nonce() -> str:
    """A fresh nonce: 20 characters of [A-Za-z0-9] (119 bits) from the system's CSPRNG.

    Its ASCII text is what the TPM signs; 20 bytes fit the qualifying data of every TPM (rest-api 3.3).
    """
    number = secrets.randbelow(_NONCES)  # one draw: the system's CSPRNG costs a system call each time
    characters = []
    for _ in range(_LENGTH):
        number, index = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[index])
    return "".join(characters)
