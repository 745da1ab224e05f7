"""Nonces for quotes, and other texts that nobody can guess: the one place they come from."""

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
_LENGTH = 20


def new_nonce() -> str:
    """A fresh nonce: 20 characters of [A-Za-z0-9] (119 bits) from the system's CSPRNG.

    Its ASCII text is what the TPM signs; 20 bytes fit the qualifying data of every TPM
    (docs/reference/rest-api.md, 3.3).
    """
    return random_text(_LENGTH)


def random_text(length: int) -> str:
    """`length` independent characters of [A-Za-z0-9] from the system's CSPRNG."""
    # One draw for all of them: each draw is a system call.
    pairs, odd = divmod(length, 2)
    number = secrets.randbelow(len(_PAIRS) ** pairs * len(_ALPHABET) ** odd)
    texts = []
    for _ in range(pairs):
        number, index = divmod(number, len(_PAIRS))
        texts.append(_PAIRS[index])
    if odd:
        texts.append(_ALPHABET[number])
    return "".join(texts)
