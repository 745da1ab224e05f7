"""System packages are asked for only where they are missing, whatever the release calls them."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(directory: Path, installed: set[str], *packages: str) -> tuple[int, str]:
    """The status and output of install-packages on a machine that has only `installed` and no apt."""
    cases = "".join(f"{name}) echo installed ;;\n" for name in installed)
    tool = directory / "dpkg-query"
    tool.write_text(f"#!/bin/sh\nfor last; do :; done\ncase $last in\n{cases}*) exit 1 ;;\nesac\n")
    tool.chmod(0o755)
    done = subprocess.run(  # noqa: S603 - a script of ours
        ["/bin/sh", ROOT / "tests/lab/install-packages", *packages],
        env={**os.environ, "PATH": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["libtss2-tcti-swtpm0", "libtss2-tcti-swtpm0t64"])
def test_a_library_with_64_bit_times_in_its_name_is_the_one_that_was_asked_for(
    name: str, tmp_path: Path
) -> None:
    assert run(tmp_path, {name, "swtpm"}, "libtss2-tcti-swtpm0", "swtpm") == (0, "")


def test_what_is_missing_is_named_where_nothing_can_be_installed(tmp_path: Path) -> None:
    status, told = run(tmp_path, {"gcc"}, "gcc", "swtpm", "procps")
    assert status == 1
    assert "missing system packages: swtpm procps (" in told
