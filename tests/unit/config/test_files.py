"""Reading as somebody who may not: as nobody, when the tests run as root."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keylime.config.loader import load_settings
from keylime.errors import ConfigError

_NOBODY = 65534


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


@contextmanager
def _unprivileged() -> Iterator[None]:
    former = os.geteuid()
    if former == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(former)


def _port(etc: Path, **environ: str) -> int:
    return load_settings("agent", environ=environ, etc=etc, usr_etc=Path("/none")).integer("port")


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
    # As the user that the agent will run as, here another one than `keylime`.
    assert _port(etc, KEYLIME_AGENT_RUN_AS="nobody:nogroup") == 9003


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_h1_configuration_of_any_other_user_is_refused(etc: Path) -> None:
    (etc / "agent.conf.d" / "agent.conf").write_text('run_as = "nobody"\n')
    _seal(etc)
    for environ in ({}, {"KEYLIME_AGENT_RUN_AS": "root"}, {"KEYLIME_AGENT_RUN_AS": "no such user"}):
        with pytest.raises(ConfigError, match=rf"{etc} belongs to nobody; run: chown root {etc}"):
            _port(etc, **environ)


def test_the_owner_of_sealed_directories_is_told_which_path_and_what_to_do(etc: Path) -> None:
    with _unprivileged():
        assert _port(etc) == 9003
    _seal(etc)
    with _unprivileged(), pytest.raises(ConfigError) as caught:
        _port(etc)
    assert str(caught.value).startswith(
        f"cannot read {etc}/agent.conf: Permission denied; start as root or give"
    )
    assert "directories need mode 0700" in str(caught.value)


def test_an_unreadable_file_is_an_error_not_an_omission(etc: Path) -> None:
    (etc / "agent.conf.d" / "agent.conf").chmod(0)
    with _unprivileged(), pytest.raises(ConfigError, match=r"agent\.conf\.d/agent\.conf: Permission denied"):
        _port(etc)


def test_an_unreadable_snippet_directory_is_an_error_not_an_omission(etc: Path) -> None:
    (etc / "agent.conf.d").chmod(0)
    with _unprivileged(), pytest.raises(ConfigError, match=r"agent\.conf\.d: Permission denied"):
        _port(etc)
