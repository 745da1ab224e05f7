"""`keylime_userdata_encrypt FILE`: encrypts a payload ahead, for `keylime_tenant -k KEYS -p PAYLOAD`."""

import os
import sys
from pathlib import Path

from keylime.command_line import OneLineParser
from keylime.interruption import end_interrupted
from keylime.payload.encryption import encrypt_payload
from keylime.payload.keys import render_key_file, split_key
from keylime.version import add_version

KEYS_FILE = "content_keys.txt"
PAYLOAD_FILE = "content_payload.txt"

_FAILED = 255  # what scripts of existing deployments expect


def main() -> None:
    """The console script."""
    parser = OneLineParser(
        prog="keylime_userdata_encrypt",
        description="Encrypt a payload; keys and ciphertext go to this directory.",
    )
    add_version(parser)
    parser.add_argument("file", nargs="?", metavar="FILE", help="what to encrypt")
    path = parser.parse_args().file
    if path is None:
        print("keylime_userdata_encrypt: error: FILE must be given: what to encrypt", file=sys.stderr)
        sys.exit(_FAILED)
    try:
        encrypt_file(Path(path), Path())
    except OSError as error:
        print(f"keylime_userdata_encrypt: error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(_FAILED)
    except KeyboardInterrupt:
        end_interrupted("keylime_userdata_encrypt")


def encrypt_file(source: Path, directory: Path) -> None:
    """Writes a new key and the ciphertext of `source` to `directory`. Raises OSError."""
    content = source.read_bytes()
    key = split_key()
    print(f"Writing keys to {KEYS_FILE}")
    _write(directory / KEYS_FILE, render_key_file(key), mode=0o600)
    print(f"Writing encrypted data to {PAYLOAD_FILE}")
    _write(directory / PAYLOAD_FILE, encrypt_payload(key.k, content), mode=0o640)


def _write(path: Path, text: str, *, mode: int) -> None:
    path.unlink(missing_ok=True)  # an existing file would keep its mode
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)
