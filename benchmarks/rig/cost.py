"""What a piece of work costs this machine: CPU, time, how busy the machine was, and how fast it is now."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

_ROUNDS = 200
_BATCHES = 5


def verification_us() -> float:
    """CPU of one P-256 verification in microseconds, the best of some batches: a unit for other figures."""
    key = ec.generate_private_key(ec.SECP256R1())
    message, public = b"a quote", key.public_key()
    signature = key.sign(message, ec.ECDSA(SHA256()))
    best = float("inf")
    for _ in range(_BATCHES):
        began = time.process_time()
        for _ in range(_ROUNDS):
            public.verify(signature, message, ec.ECDSA(SHA256()))
        best = min(best, time.process_time() - began)
    return best / _ROUNDS * 1e6


@dataclass(slots=True)
class Cost:
    """Of some work: V in microseconds, seconds of CPU of all its processes and by the clock, the load."""

    v_us: float
    cpu_s: float = 0.0
    wall_s: float = 0.0
    load: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Takes the cost of the block; of processes that it starts when they have ended in it."""
    cost = Cost(verification_us())
    began, cpu_s = time.monotonic(), _cpu_s()
    try:
        yield cost
    finally:
        cost.cpu_s, cost.wall_s = _cpu_s() - cpu_s, time.monotonic() - began
        cost.load = os.getloadavg()[0]


def _cpu_s() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def allow_descriptors(count: int) -> None:
    """Lets this process and those that it starts open so many files and sockets. Raises SystemExit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
    except (ValueError, OSError) as error:
        raise SystemExit(
            f"{count} open files and sockets are needed, {hard} may be had: ulimit -Hn {count}, as root"
        ) from error
