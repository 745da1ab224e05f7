"""Stops processes, and comes back when they stand still: a signal is on its way for a moment."""

import os
import signal
import time
from pathlib import Path

LIMIT_S = 100.0
_STANDS = frozenset("TtZX")


def stop_still(pid: int) -> None:
    """Sends SIGSTOP; returns when no thread of the process runs any more, or the process is gone.

    Raises ProcessLookupError when it is gone before.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + LIMIT_S
    while not all(state in _STANDS for state in _states(pid)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} does not stop: {_states(pid)}")
        time.sleep(0.001)


def _states(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            found.append(path.read_text().rpartition(") ")[2][0])
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
    return found
