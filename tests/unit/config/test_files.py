"""Reading as somebody who may not: in a process of its own, as nobody when the tests run as root."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from keylime.config.loader import load_settings

_NOBODY = 65534
_LOAD = """
import sys
from pathlib import Path
from keylime.config.loader import load_settings
from keylime.errors import ConfigError
try:
    print(load_settings(sys.argv[1], environ={}, etc=Path(sys.argv[2]), usr_etc=Path("/none")).integer("port"))
except ConfigError as error:
    print(error)
"""


@pytest.fixture
def etc() -> Iterator[Path]:
    # Not tmp_path, whose parents are closed to other users.
    directory = Path(tempfile.mkdtemp(prefix="keylime-test-"))
    directory.chmod(0o755)
    snippets = directory / "keylime" / "agent.conf.d"
    snippets.mkdir(parents=True)
    (snippets / "agent.conf").write_text("port = 9003\n")
    yield directory / "keylime"
    for path in (directory / "keylime", snippets):
        path.chmod(0o700)
    shutil.rmtree(directory)


def _load_unprivileged(component: str, etc: Path) -> str:
    user = _NOBODY if os.geteuid() == 0 else None
    command = [sys.executable, "-c", _LOAD, component, str(etc)]
    result = subprocess.run(
        command, user=user, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def _seal(etc: Path) -> None:
    """chown -R keylime:tss /etc/keylime; chmod -R 600 /etc/keylime"""
    snippets = etc / "agent.conf.d"
    for path in (snippets / "agent.conf", snippets, etc):
        if os.geteuid() == 0:
            os.chown(path, _NOBODY, _NOBODY)
        path.chmod(0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root passes directories without search permission")
def test_root_reads_configuration_below_sealed_directories(etc: Path) -> None:
    _seal(etc)
    assert load_settings("agent", environ={}, etc=etc, usr_etc=Path("/none")).integer("port") == 9003


def test_the_owner_of_sealed_directories_is_told_which_path_and_what_to_do(etc: Path) -> None:
    assert _load_unprivileged("agent", etc) == "9003"
    _seal(etc)
    message = _load_unprivileged("agent", etc)
    assert message.startswith(f"cannot read {etc}/agent.conf: Permission denied; start as root or give")
    assert "directories need mode 0700" in message


def test_an_unreadable_file_is_an_error_not_an_omission(etc: Path) -> None:
    (etc / "agent.conf.d" / "agent.conf").chmod(0)
    assert "agent.conf.d/agent.conf: Permission denied" in _load_unprivileged("agent", etc)


def test_an_unreadable_snippet_directory_is_an_error_not_an_omission(etc: Path) -> None:
    (etc / "agent.conf.d").chmod(0)
    assert "agent.conf.d: Permission denied" in _load_unprivileged("agent", etc)
