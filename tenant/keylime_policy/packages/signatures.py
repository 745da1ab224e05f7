"""OpenPGP signatures of repositories, checked by gpgv, as apt does."""

import base64
import binascii
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from keylime.errors import ConfigError
from keylime_policy.files import read_input

_ARMOUR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[^\n]*:[^\n]*\n)*\s*\n"
    rb"(.*?)-----END PGP PUBLIC KEY BLOCK-----",
    re.DOTALL,
)
_SIGNED = b"-----BEGIN PGP SIGNED MESSAGE-----"
_GOOD = re.compile(r"^\[GNUPG:\] GOODSIG ", re.MULTILINE)
_BAD = re.compile(r"^\[GNUPG:\] BADSIG ", re.MULTILINE)
_KNOWN_TROUBLE = {
    "NO_PUBKEY": "it is signed by a key that is not among those given",
    "EXPKEYSIG": "the key that signed it has ended",
    "EXPSIG": "its signature has ended",
    "REVKEYSIG": "the key that signed it was revoked",
}
_TIME_S = 60


def load_keys(option: str, paths: Sequence[str]) -> list[bytes]:
    """OpenPGP keys in files, armoured or not, in the binary form. Raises ConfigError."""
    return [dearmoured(f"{option} {path}", read_input(option, path)) for path in paths]


def dearmoured(where: str, content: bytes) -> bytes:
    """Public keys in their binary form. Raises ConfigError."""
    blocks = _ARMOUR.findall(content)
    if not blocks:
        if not content or content[0] < 0x80:
            raise ConfigError(f"{where}: holds no OpenPGP public key")
        return content
    try:
        # The line that begins with = is a check sum.
        return b"".join(
            base64.b64decode(
                b"".join(line for line in block.split() if not line.startswith(b"=")), validate=True
            )
            for block in blocks
        )
    except binascii.Error as error:
        raise ConfigError(f"{where}: the OpenPGP key is damaged: {error}") from error


def verify_detached(where: str, content: bytes, signature: bytes, keys: Sequence[bytes]) -> None:
    """Raises ConfigError unless one of `keys` signed `content`."""
    with tempfile.TemporaryDirectory(prefix="keylime-policy-") as name:
        directory = Path(name)
        (directory / "content").write_bytes(content)
        (directory / "signature").write_bytes(signature)
        _run(where, directory, keys, ["signature", "content"])


def verify_inline(where: str, content: bytes, keys: Sequence[bytes]) -> bytes:
    """The text that one of `keys` signed, in a document that has its signature inside. Raises ConfigError."""
    if not content.startswith(_SIGNED) or content.count(_SIGNED) != 1:
        raise ConfigError(f"{where}: is not one signed text and nothing else")
    with tempfile.TemporaryDirectory(prefix="keylime-policy-") as name:
        directory = Path(name)
        (directory / "content").write_bytes(content)
        _run(where, directory, keys, ["--output", "text", "content"])
        return (directory / "text").read_bytes()


def _run(where: str, directory: Path, keys: Sequence[bytes], arguments: Sequence[str]) -> None:
    program = shutil.which("gpgv")
    if program is None:
        raise ConfigError(
            f"{where}: its signature is checked by gpgv, which is not installed "
            "(Debian: gpgv; Fedora, openSUSE: gnupg2)"
        )
    rings = []
    for number, key in enumerate(keys):
        (directory / f"key{number}").write_bytes(key)
        rings += ["--keyring", f"./key{number}"]
    done = subprocess.run(  # noqa: S603 - its arguments are ours
        [program, "--homedir", ".", "--status-fd", "1", "--weak-digest", "SHA1", *rings, *arguments],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIME_S,
        check=False,
    )
    # As apt: one good signature will do, further ones by unknown keys do no harm, a wrong one does.
    if _GOOD.search(done.stdout) and not _BAD.search(done.stdout):
        return
    reason = "its signature does not hold"
    if not _BAD.search(done.stdout):
        reason = next((text for word, text in _KNOWN_TROUBLE.items() if f" {word} " in done.stdout), reason)
    raise ConfigError(f"{where}: {reason}")
