"""A disk that fills up and a clock that jumps: when it is said, and for how long it is shown."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from keylime.service.surroundings import Moment, Surroundings, disk_remark, free_and_size, jump_s

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "size", "is_enough"),
    [
        (2 * GIB, 1000 * GIB, True),  # little of it, but much
        (GIB - 1, 1000 * GIB, False),
        (GIB // 2, 8 * GIB, True),  # not much, but a good part of a small one
        (GIB // 4, 8 * GIB, False),
        (0, 8 * GIB, False),
        (0, 0, True),  # a file system that does not tell
    ],
)
def test_a_disk_is_full_when_little_is_left_in_any_respect(free: int, size: int, is_enough: bool) -> None:
    assert (disk_remark(free, size) is None) is is_enough


@pytest.mark.parametrize(
    ("wall_s", "steady_s", "expected"),
    [(10.0, 10.0, 0), (10.4, 10.0, 0), (3610.0, 10.0, 3600), (-50.0, 10.0, -60), (9000.0, 9000.0, 0)],
)
def test_a_jump_is_what_the_steady_clock_does_not_know(
    wall_s: float, steady_s: float, expected: float
) -> None:
    assert jump_s(Moment(1e9, 5.0), Moment(1e9 + wall_s, 5.0 + steady_s)) == expected


@dataclass
class Machine:
    """Its disk and its clocks."""

    free: int = 100 * GIB
    wall: float = 1_700_000_000.0
    steady: float = 50.0

    def room(self, _directory: Path) -> tuple[int, int]:
        return self.free, 100 * GIB

    def moment(self) -> Moment:
        return Moment(self.wall, self.steady)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def test_what_is_wrong_is_said_at_once_and_daily_and_shown_meanwhile(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    machine = Machine()
    found = Surroundings(Path("/w"), room=machine.room, moment=machine.moment)
    found.look()
    assert (found.disk(), found.clock(), caplog.messages) == (None, None, [])
    machine.free = GIB // 2
    machine.wait(10)
    for _ in range(3):
        found.look()
        machine.wait(10)
    assert found.disk() == "512 MiB are free, 0 % of the disk"
    assert caplog.messages == ["the disk of /w fills up: 512 MiB are free, 0 % of the disk; make room"]
    machine.wait(86_400)
    found.look()
    assert len(caplog.messages) == 2
    machine.free = 50 * GIB
    machine.wait(10)
    machine.wall -= 7200
    found.look()
    assert found.disk() is None
    assert found.clock() is not None
    assert "set back by 7200 s, to 2023-11-15" in caplog.messages[-1]
    machine.wait(90_000)
    found.look()
    assert found.clock() is None


def test_another_worker_shows_it_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(free=0)
    found = Surroundings(Path("/w"), is_speaker=False, room=machine.room, moment=machine.moment)
    found.look()
    assert found.disk() is not None
    assert caplog.messages == []


def test_a_directory_that_cannot_be_looked_at_is_a_remark(tmp_path: Path) -> None:
    found = Surroundings(tmp_path / "gone")
    found.look()
    assert found.disk() == "it cannot be looked at: No such file or directory"
    free, size = free_and_size(tmp_path)
    assert 0 <= free <= size
