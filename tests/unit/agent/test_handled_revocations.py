"""What an agent remembers of revocations, in memory and in its file."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime_agent.handled_revocations import HandledRevocations


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def test_a_message_is_known_once_it_was_handled() -> None:
    handled = HandledRevocations()
    assert key(1) not in handled
    handled.add(key(1))
    assert key(1) in handled
    assert key(2) not in handled


def test_it_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "handled"
    for number in (1, 2):
        HandledRevocations(path).add(key(number))
    restarted = HandledRevocations(path)
    assert [key(number) in restarted for number in (1, 2, 3)] == [True, True, False]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_oldest_of_too_many_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "handled"
    path.write_bytes(b"".join(key(number) for number in range(4096)))
    handled = HandledRevocations(path)
    handled.add(key(4096))
    assert [key(number) in handled for number in (0, 1, 4096)] == [False, True, True]
    assert path.stat().st_size == 4096 * 32


def test_a_file_that_cannot_be_used_costs_only_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "handled"
    path.mkdir()
    handled = HandledRevocations(path)
    handled.add(key(1))
    assert key(1) in handled
    assert "cannot be read" in caplog.text
    assert "will be acted upon again" in caplog.text


@given(content=st.binary(max_size=200))
def test_any_file_can_be_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "handled"
    path.write_bytes(content)
    handled = HandledRevocations(path)
    assert all(content[at : at + 32] in handled for at in range(0, len(content) - 31, 32))
