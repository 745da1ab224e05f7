"""Several equal processes of one daemon: started together, each replaced when it ends, ended together.

The supervisor does nothing else. It forks its workers from a state without threads, event loop or open
database, so that each begins as if it were alone; it waits for signals and for its workers' ends.
"""

import asyncio
import contextlib
import gc
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from keylime.errors import KeylimeError
from keylime.service.daemon import log_failed_reload, log_reloaded
from keylime.service.service_manager import ServiceManager

log = logging.getLogger(__name__)

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALS = STOP_SIGNALS | {signal.SIGCHLD, signal.SIGHUP}
_STOP_LIMIT_S = 4.7  # a stop may take five seconds in all
_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 30.0
_STEADY_S = 60.0  # a worker that ran for so long is replaced without a long pause
_LOOK_S = 0.05  # while workers start or reload
_SILENCE_LIMIT_S = 60.0  # of a worker: one whose event loop stands still is replaced
_READY = b"ready\n"
_ALIVE = b"alive\n"


class WorkersFailed(KeylimeError):
    """A worker process could not start; the text is the reason that it gave."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker knows of its place: `number` counts from 0. `lifeline` is readable once it is alone."""

    number: int
    count: int
    lifeline: int
    _report: int

    def manager(self) -> ServiceManager:
        """The supervisor, which wants to hear the same from its workers as it tells the service manager."""
        return ServiceManager(self._tell, _SILENCE_LIMIT_S)

    def _tell(self, assignments: Sequence[str]) -> None:
        if "READY=1" in assignments:  # after the start, and after a reload
            os.write(self._report, _READY)
        elif "WATCHDOG=1" in assignments:
            os.write(self._report, _ALIVE)


@dataclass(slots=True)
class _Slot:
    """One worker's place, and who is in it."""

    number: int
    pid: int | None = None
    reports: int = -1  # where the worker tells that it is ready, or why it is not
    said: bytes = b""
    heard_at: float = 0.0
    started_at: float = 0.0
    start_at: float = 0.0
    delay_s: float = field(default=_FIRST_DELAY_S)

    @property
    def is_ready(self) -> bool:
        return self.said.startswith(_READY)


def worker_count(wanted: int, most: int) -> int:
    """How many processes to start: `wanted`, or one for each CPU when 0; at most `most`, unless that is 0."""
    count = wanted or len(os.sched_getaffinity(0))
    return min(count, most) if most else count


def run_workers(
    count: int,
    work: Callable[[Worker], None],
    *,
    check_reload: Callable[[], None],
    manager: ServiceManager,
    status: str,
) -> None:
    """Runs `work` in `count` processes until a stop signal; `status` is logged and told when all serve.

    `work` returns after a clean stop. Raises WorkersFailed when a worker cannot start at the beginning; the
    others have been ended then. A worker that ends later, or is not heard of for a minute, is replaced.
    SIGHUP goes on to the workers unless `check_reload` raises KeylimeError.
    """
    _Supervisor(count, work, check_reload, manager, status).run()


def stop_event(lifeline: int | None = None) -> asyncio.Event:
    """Set by a stop signal, and when the supervisor behind `lifeline` is gone. Call it in the event loop."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)

    def be_alone() -> None:
        if lifeline is not None:
            loop.remove_reader(lifeline)
        stop.set()

    if lifeline is not None:
        loop.add_reader(lifeline, be_alone)
    return stop


class _Supervisor:
    def __init__(
        self,
        count: int,
        work: Callable[[Worker], None],
        check_reload: Callable[[], None],
        manager: ServiceManager,
        status: str,
    ) -> None:
        self._slots = [_Slot(number) for number in range(count)]
        self._work = work
        self._check_reload = check_reload
        self._manager = manager
        self._status = status
        self._have_started = False
        self._is_announced = False
        self._is_reloading = False
        self._ping_at = 0.0
        self._looked_at = time.monotonic()
        self._lifeline, self._life = os.pipe()
        self._mask: set[signal.Signals | int] = set()

    def run(self) -> None:
        gc.collect()
        gc.freeze()  # what is there now is shared with the workers, as long as nobody touches it
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._watch()
        finally:
            self._stop()
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            os.close(self._life)
            os.close(self._lifeline)

    def _watch(self) -> None:
        while True:
            for slot in self._slots:
                if slot.pid is None and time.monotonic() >= slot.start_at:
                    self._start(slot)
            pause_s = self._pause_s()
            received = signal.sigtimedwait(_SIGNALS, pause_s)
            self._forgive_own_pause(pause_s)
            if received is not None and received.si_signo in STOP_SIGNALS:
                log.info("Stopping")
                self._manager.stopping()
                return
            if received is not None and received.si_signo == signal.SIGHUP:
                self._reload()
            for slot in self._slots:
                self._look_after(slot)
            self._announce()
            self._ping()

    def _pause_s(self) -> float:
        if not self._is_announced or any(slot.pid is None for slot in self._slots):
            return _LOOK_S
        look_s = _SILENCE_LIMIT_S / 4
        if self._manager.ping_interval_s is None:
            return look_s
        return min(look_s, max(0.0, self._ping_at - time.monotonic()))

    def _forgive_own_pause(self, wanted_s: float) -> None:
        """Silence counts only while this process runs itself: what froze both is no fault of the workers."""
        now = time.monotonic()
        late_s = max(0.0, now - self._looked_at - wanted_s)
        self._looked_at = now
        for slot in self._slots:
            slot.heard_at += late_s

    def _reload(self) -> None:
        self._manager.reloading()
        try:
            self._check_reload()
        except KeylimeError as error:
            log_failed_reload(error)
        except Exception:
            log.exception("the reload failed because of a defect")
        else:
            for slot in self._slots:
                slot.said = b""
            self._send(signal.SIGHUP)
            self._is_reloading = True
        self._is_announced = False

    def _announce(self) -> None:
        if self._is_announced or not all(slot.is_ready for slot in self._slots):
            return
        if not self._have_started:
            log.info("%s", self._status)
        elif self._is_reloading:
            log_reloaded()
        self._is_reloading = False
        self._have_started = self._is_announced = True
        self._manager.ready(self._status)

    def _ping(self) -> None:
        interval_s = self._manager.ping_interval_s
        if interval_s is not None and self._have_started and time.monotonic() >= self._ping_at:
            self._manager.ping()
            self._ping_at = time.monotonic() + interval_s

    def _start(self, slot: _Slot) -> None:
        reports, report = os.pipe()
        os.set_blocking(reports, False)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reports)
            os.close(self._life)
            for other in self._slots:
                if other.reports >= 0:
                    os.close(other.reports)
            worker = Worker(slot.number, len(self._slots), self._lifeline, report)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            _become(worker, report, self._work)
        os.close(report)
        slot.pid, slot.reports, slot.said = pid, reports, b""
        slot.started_at = slot.heard_at = time.monotonic()

    def _look_after(self, slot: _Slot) -> None:
        """Reads what a worker says, and sees whether it has ended."""
        if slot.pid is None:
            return
        ended, status = os.waitpid(slot.pid, os.WNOHANG)
        heard = _read_all(slot.reports)
        if heard:
            slot.heard_at = time.monotonic()
            slot.said += heard.replace(_ALIVE, b"")
        if not ended:
            self._end_if_silent(slot)
            return
        os.close(slot.reports)
        slot.pid, slot.reports = None, -1
        reason = slot.said.decode(errors="replace").removeprefix(_READY.decode()).strip() or _how(status)
        if not self._have_started:
            raise WorkersFailed(reason)
        is_steady = time.monotonic() - slot.started_at > _STEADY_S
        slot.delay_s = _FIRST_DELAY_S if is_steady else slot.delay_s
        log.error("worker %d ended (%s), starting another in %g s", slot.number, reason, slot.delay_s)
        slot.start_at = time.monotonic() + slot.delay_s
        slot.delay_s = min(2 * slot.delay_s, _LONGEST_DELAY_S)
        slot.said = b""

    def _end_if_silent(self, slot: _Slot) -> None:
        if (
            slot.pid is not None
            and self._have_started
            and time.monotonic() - slot.heard_at > _SILENCE_LIMIT_S
        ):
            log.error("worker %d was not heard of for %g s and is killed", slot.number, _SILENCE_LIMIT_S)
            os.kill(slot.pid, signal.SIGKILL)
            slot.heard_at = time.monotonic()

    def _send(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.pid is not None:  # not reaped yet, so the id is still its own
                os.kill(slot.pid, number)

    def _stop(self) -> None:
        """Ends all workers, those that take too long by force."""
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_LIMIT_S
        while self._reap() and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, _LOOK_S)
        if self._reap():
            log.error("workers did not end in time and are killed")
            self._send(signal.SIGKILL)
        for slot in self._slots:
            if slot.pid is not None:
                os.waitpid(slot.pid, 0)
                slot.pid = None

    def _reap(self) -> bool:
        """Whether workers are left."""
        for slot in self._slots:
            if slot.pid is not None and os.waitpid(slot.pid, os.WNOHANG)[0]:
                os.close(slot.reports)
                slot.pid = None
        return any(slot.pid is not None for slot in self._slots)


def _become(worker: Worker, report: int, work: Callable[[Worker], None]) -> None:
    """The life of a worker; never returns. What keeps it from starting is told to the supervisor."""
    status = 1
    try:
        work(worker)
        status = 0
    except KeylimeError as error:
        os.write(report, " ".join(str(error).split()).encode()[: select.PIPE_BUF])
    except BaseException:
        log.exception("worker %d ended because of a defect", worker.number)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)  # nothing of the supervisor's own end happens here


def _read_all(descriptor: int) -> bytes:
    return b"".join(_chunks(descriptor))


def _chunks(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(descriptor, 4096)
        except BlockingIOError:
            return
        if not chunk:
            return
        yield chunk


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
