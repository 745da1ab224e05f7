"""Worker processes: started together, replaced when they end, ended together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keylime.service.supervisor import worker_count
from tests.fakes.own_time import OwnTime

LIMIT_S = 100.0
# Workers note in a directory when they start, their process ids and each sign of life, and do what their
# number's file there says.
PROGRAM = """
import asyncio, logging, os, pathlib, sys, time
import keylime.service.supervisor
from keylime.errors import ConfigError, KeylimeError
from keylime.service.service_manager import ServiceManager
from keylime.service.supervisor import Worker, run_workers, stop_event

place = pathlib.Path(sys.argv[1])
keylime.service.supervisor._SILENCE_LIMIT_S = float(sys.argv[2])

async def serve(worker):
    stop = stop_event(worker.lifeline)
    asyncio.get_running_loop().add_signal_handler(1, (place / f"hup-{worker.number}").touch)

    async def is_alive():
        (place / f"beat-{worker.number}").touch()
        return True

    manager = worker.manager()
    manager.ready("")
    beating = asyncio.create_task(manager.keep_alive(is_alive))
    await stop.wait()
    beating.cancel()
    (place / f"stopped-{worker.number}").touch()

def work(worker):
    with (place / f"starts-{worker.number}").open("a") as starts:
        print(time.monotonic(), file=starts)
    (place / f"new-{worker.number}").write_text(str(os.getpid()))
    os.replace(place / f"new-{worker.number}", place / f"pid-{worker.number}")  # whole or not at all
    orders = place / f"orders-{worker.number}"
    text = orders.read_text() if orders.exists() else ""
    if text == "refuse":
        raise ConfigError("this cannot be configured")
    if text == "fail":
        raise LookupError("a defect")
    if text == "hang":
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        worker.manager().ready("")
        time.sleep(60)
    asyncio.run(serve(worker))

logging.basicConfig(stream=sys.stdout, format="%(message)s")
def tell(assignments):
    if "READY=1" in assignments:
        (place / "all-ready").touch()

def check_reload():
    if (place / "bad-file").exists():
        raise ConfigError("a bad file")

try:
    run_workers(2, work, check_reload=check_reload, manager=ServiceManager(tell, None), status="all serve")
except KeylimeError as error:
    sys.exit(f"error: {error}")
"""


@contextmanager
def supervised(
    place: Path, *, wait: bool = True, silence_limit_s: float = 60
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", PROGRAM, str(place), str(silence_limit_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if wait:
            until(place / "all-ready")
        yield process
    finally:
        process.kill()
        process.communicate()
        for number in range(2):
            end(place, number)


def end(place: Path, number: int) -> None:
    """Kills a worker that a failing test left behind."""
    if (place / f"pid-{number}").exists() and is_alive(pid := pid_of(place, number)):
        os.kill(pid, signal.SIGKILL)


def until(path: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.01)


def pid_of(place: Path, number: int) -> int:
    until(place / f"pid-{number}")
    return int((place / f"pid-{number}").read_text())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stop_signal_ends_all_workers_in_good_order(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
        assert all((tmp_path / f"stopped-{number}").exists() for number in range(2))
        assert not any(is_alive(pid_of(tmp_path, number)) for number in range(2))


def test_a_hang_up_is_passed_on(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        process.send_signal(signal.SIGHUP)
        for number in range(2):
            until(tmp_path / f"hup-{number}")
        assert process.poll() is None


def test_a_hang_up_that_would_fail_everywhere_is_not_passed_on(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        (tmp_path / "bad-file").touch()
        process.send_signal(signal.SIGHUP)
        assert process.stdout is not None
        assert "a bad file" in process.stdout.readline()
        assert not list(tmp_path.glob("hup-*"))


def test_a_worker_that_dies_is_replaced_and_named_in_the_log(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        dead = pid_of(tmp_path, 1)
        (tmp_path / "pid-1").unlink()
        os.kill(dead, signal.SIGKILL)
        assert pid_of(tmp_path, 1) != dead
        process.send_signal(signal.SIGTERM)
        assert (
            process.communicate(timeout=LIMIT_S)[0] == "worker 1 ended (SIGKILL), starting another in 1 s\n"
        )
        assert process.returncode == 0


def test_a_worker_that_cannot_be_replaced_is_tried_again_ever_later(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        (tmp_path / "orders-1").write_text("refuse")
        os.kill(pid_of(tmp_path, 1), signal.SIGKILL)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[1] == "worker 1 ended (this cannot be configured), starting another in 2 s\n"
        (tmp_path / "orders-1").unlink()
        (tmp_path / "pid-1").unlink()
        pid_of(tmp_path, 1)
        assert process.poll() is None


def until_it_beats(place: Path, *numbers: int) -> None:
    """Returns when each of the workers has given two signs of life more: the first may be an old one."""
    for _ in range(2):
        for number in numbers:
            (place / f"beat-{number}").unlink(missing_ok=True)
        for number in numbers:
            until(place / f"beat-{number}")


def test_a_worker_that_is_alive_and_silent_is_killed_and_replaced_while_the_others_go_on(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, silence_limit_s=1) as process:
        other, silent = pid_of(tmp_path, 0), pid_of(tmp_path, 1)
        (tmp_path / "pid-1").unlink()
        os.kill(silent, signal.SIGSTOP)
        stopped_at, own = time.monotonic(), OwnTime(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == "worker 1 was not heard of for 1 s and is killed\n"
        assert time.monotonic() - stopped_at > 0.4, "from its last sign of life"
        assert own.passed_s() < 3, "to the next look"
        assert process.stdout.readline() == "worker 1 ended (SIGKILL), starting another in 1 s\n"
        assert pid_of(tmp_path, 1) != silent
        until_it_beats(tmp_path, 0, 1)
        assert (pid_of(tmp_path, 0), is_alive(silent)) == (other, False)


def test_workers_are_not_blamed_for_a_pause_of_the_whole_service(tmp_path: Path) -> None:
    """As when a container is frozen, or a machine is stopped by a debugger."""
    with supervised(tmp_path, silence_limit_s=1) as process:
        workers = [pid_of(tmp_path, number) for number in range(2)]
        for pid in (process.pid, *workers):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)  # longer than the limit
        process.send_signal(signal.SIGCONT)  # the supervisor runs first
        time.sleep(0.2)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        until_it_beats(tmp_path, 0, 1)
        assert [pid_of(tmp_path, number) for number in range(2)] == workers
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=LIMIT_S)[0] == ""


def test_a_worker_that_dies_at_once_every_time_waits_ever_longer_while_the_others_go_on(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, silence_limit_s=1):
        other = pid_of(tmp_path, 0)
        (tmp_path / "orders-1").write_text("fail")
        os.kill(pid_of(tmp_path, 1), signal.SIGKILL)
        starts = tmp_path / "starts-1"
        deadline = time.monotonic() + LIMIT_S
        while len(began := [float(line) for line in starts.read_text().split()]) < 3:
            until_it_beats(tmp_path, 0)
            assert time.monotonic() < deadline
        assert began[2] - began[1] >= 2
        assert (pid_of(tmp_path, 0), len(starts.read_text().split())) == (other, 3)


@pytest.mark.parametrize(
    ("orders", "said"), [("refuse", "error: this cannot be configured\n"), ("fail", "error: exit status 1\n")]
)
def test_a_worker_that_cannot_start_ends_the_start_with_its_reason(
    tmp_path: Path, orders: str, said: str
) -> None:
    for number in range(2):
        (tmp_path / f"orders-{number}").write_text(orders)
    with supervised(tmp_path, wait=False) as process:
        _, errors = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, errors) == (1, said)


def test_workers_that_do_not_end_are_killed_within_five_seconds(tmp_path: Path) -> None:
    (tmp_path / "orders-0").write_text("hang")
    with supervised(tmp_path) as process:
        began, own = time.monotonic(), OwnTime(process.pid)
        process.send_signal(signal.SIGTERM)
        while process.poll() is None and own.passed_s() < 6:
            time.sleep(0.02)
        assert (process.returncode, own.passed_s() < 6) == (0, True)
        assert time.monotonic() - began > 4
        assert not is_alive(pid_of(tmp_path, 0))


def test_workers_do_not_outlive_their_supervisor(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        process.kill()
        for number in range(2):
            until(tmp_path / f"stopped-{number}")


@pytest.mark.parametrize(("wanted", "most", "count"), [(1, 16, 1), (4, 16, 4), (40, 16, 16), (40, 0, 40)])
def test_the_number_of_workers_has_a_limit_of_its_own(wanted: int, most: int, count: int) -> None:
    assert worker_count(wanted, most) == count


def test_zero_means_one_worker_for_each_cpu() -> None:
    assert worker_count(0, 0) == len(os.sched_getaffinity(0))
