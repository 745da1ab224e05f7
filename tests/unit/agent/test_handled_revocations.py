"""What an agent remembers of revocations, in memory and in its file."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime_agent.handled_revocations import HandledRevocations
from keylime_agent.revocation_rules import Handled

BOOT = bytes(range(16))
NOW = 1_795_370_708
SIZE = 56  # bytes of one record


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def test_a_message_is_known_once_it_was_handled() -> None:
    handled = HandledRevocations()
    assert handled.get(key(1)) is None
    handled.add(key(1), NOW, BOOT)
    assert handled.get(key(1)) == Handled(NOW, BOOT)
    assert handled.get(key(2)) is None


def test_it_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "handled"
    for number in (1, 2):
        HandledRevocations(path).add(key(number), NOW + number, BOOT)
    restarted = HandledRevocations(path)
    assert [restarted.get(key(number)) for number in (1, 2, 3)] == [
        Handled(NOW + 1, BOOT),
        Handled(NOW + 2, BOOT),
        None,
    ]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_first_time_is_kept_and_the_last_boot(tmp_path: Path) -> None:
    path = tmp_path / "handled"
    HandledRevocations(path).add(key(1), NOW, BOOT)
    HandledRevocations(path).add(key(1), NOW + 300, bytes(16))
    assert HandledRevocations(path).get(key(1)) == Handled(NOW, bytes(16))
    assert path.stat().st_size == SIZE


def test_the_oldest_of_too_many_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "handled"
    path.write_bytes(b"".join(key(number) + bytes(24) for number in range(4096)))
    handled = HandledRevocations(path)
    handled.add(key(4096), NOW, BOOT)
    assert [handled.get(key(number)) is not None for number in (0, 1, 4096)] == [False, True, True]
    assert path.stat().st_size == 4096 * SIZE


def test_a_file_that_cannot_be_used_costs_only_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "handled"
    path.mkdir()
    handled = HandledRevocations(path)
    handled.add(key(1), NOW, BOOT)
    assert handled.get(key(1)) is not None
    assert "cannot be read" in caplog.text
    assert "will be acted upon again" in caplog.text


@given(content=st.binary(max_size=3 * SIZE))
def test_any_file_can_be_read_and_written_again(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "handled"
    path.write_bytes(content)
    handled = HandledRevocations(path)
    for at in range(0, len(content) - SIZE + 1, SIZE):
        assert handled.get(content[at : at + 32]) is not None
    handled.add(key(1), NOW, BOOT)
    assert HandledRevocations(path).get(key(1)) == Handled(NOW, BOOT)
