"""A quote from a disk: the wire form or three files, and the file of the key that should have signed it."""

from pathlib import Path

from keylime.errors import ConfigError
from keylime.tpm.quote import encode_quote
from keylime_policy.files import read_input, read_source
from keylime_policy.stored_quote import StoredQuote, stored_quote

_PARTS = (".msg", ".sig", ".pcrs")  # TPMS_ATTEST, TPMT_SIGNATURE, PCR values
_QUOTE = "--quote"


def load_quote(path: str, ak: str, nonce: str) -> StoredQuote:
    """The quote at `path` (a file, or what the names of three files begin with). Raises ConfigError."""
    return stored_quote(_quote_text(path), read_source("--ak", ak), nonce)


def _quote_text(path: str) -> str:
    prefix = path.rstrip(".")
    if not Path(path).is_file() and Path(prefix + _PARTS[0]).is_file():
        attest, signature, pcrs = (read_input(_QUOTE, prefix + part) for part in _PARTS)
        return encode_quote(attest, signature, pcrs)
    try:
        return read_input(_QUOTE, path).decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{_QUOTE} {path}: neither the text of a quote (r...:...:...) "
            f"nor what the names of a {', a '.join(_PARTS)} file begin with"
        ) from error
