"""What a payload becomes on the agent, as its options say; attacks on it are in tests/attacks."""

import io
import os
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from keylime.payload.encryption import encrypt_payload
from keylime.payload.keys import DerivedKey
from keylime_agent.payload import PayloadOptions, install_payload

OPTIONS = PayloadOptions(
    "derived_tci_key", "decrypted_payload", True, "autorun.sh", None, is_allowed=True, script_limit_s=10
)


def made_elsewhere() -> bytes:
    """An archive as zip(1) makes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("autorun.sh", "#!/bin/sh\n")
        archive.writestr("keys/id_rsa", "secret")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("options", "files", "script"),
    [
        (
            OPTIONS,
            {"derived_tci_key", "decrypted_payload", "autorun.sh", "keys/id_rsa"},
            "autorun.sh",
        ),
        (
            replace(OPTIONS, script=""),
            {"derived_tci_key", "decrypted_payload", "autorun.sh", "keys/id_rsa"},
            None,
        ),
        (
            replace(OPTIONS, script="other.sh"),
            {"derived_tci_key", "decrypted_payload", "autorun.sh", "keys/id_rsa"},
            None,
        ),
        (replace(OPTIONS, extract_zip=False), {"derived_tci_key", "decrypted_payload"}, None),
    ],
    ids=["as packaged", "no script", "another script", "not unpacked"],
)
def test_an_archive_is_unpacked_and_its_script_chosen_as_the_options_say(
    tmp_path: Path, options: PayloadOptions, files: set[str], script: str | None
) -> None:
    archive, key = made_elsewhere(), os.urandom(32)
    directory = tmp_path / "unzipped"
    installed = install_payload(DerivedKey(key, encrypt_payload(key, archive)), directory, options)
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert found == files
    assert (directory / "decrypted_payload").read_bytes() == archive
    assert (installed.script.name if installed.script else None) == script
    if "autorun.sh" in files:
        is_executable = bool(stat.S_IMODE((directory / "autorun.sh").stat().st_mode) & 0o100)
        assert is_executable == (script is not None)
