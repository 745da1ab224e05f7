"""Names that people try with make do something, or say what to do in their place."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MAKE = shutil.which("make")
FOLDERS = (
    *("agent", "benchmarks", "config", "docs", "keylime", "packaging", "registrar"),
    *("requirements", "systemd", "tenant", "tests", "verifier"),
)

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


def rehearse(target: str) -> str:
    """What make would do."""
    done = subprocess.run(  # noqa: S603 - make, with a name of ours
        [str(MAKE), "--dry-run", "--no-print-directory", "MAKEFLAGS=", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_name_is_no_file_that_is_up_to_date(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert "Nothing to be done" not in rehearse(folder)


@pytest.mark.parametrize(
    ("name", "other"), [("tests", "test"), ("benchmarks", "bench"), ("requirements", "lock")]
)
def test_some_names_mean_the_same(name: str, other: str) -> None:
    assert rehearse(name) == rehearse(other)


def test_a_check_is_lint_and_unit_tests() -> None:
    steps = rehearse("check")
    assert all(command in steps for command in ("ruff check", "mypy", "lint-imports", "pytest tests/unit"))
