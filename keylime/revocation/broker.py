"""The program of the ZeroMQ broker: `python -m keylime.revocation.broker CONTROL LISTENER`.

It serves the subscribers of a verifier in a process of its own, because anybody may connect to it: whatever
they do to it costs attestation nothing. `broker_process` starts it with two open descriptors: a stream of
messages from the verifier, each acknowledged when it has been taken, and the listening socket. It holds no
keys and opens no files but those of its logging. It ends when the stream does. Signals mean nothing to it: a
service manager sends them to all processes of a service, and this one must end last.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path

import uvloop

from keylime import keylime_logging
from keylime.errors import KeylimeError
from keylime.revocation.publisher import ConnectionLimits, RevocationPublisher

log = logging.getLogger(__name__)

HEADER = struct.Struct("!QdI")
"""Before each message: its number, when it was published (monotonic clock), and its size; 0 asks for life."""
WITHDRAWAL = -1.0
"""In place of the time: what follows are the digests of messages that nobody is to get any more."""
DIGEST_SIZE = 32
ACKNOWLEDGEMENT = struct.Struct("!Q")
"""The number of a message that was taken."""
MAX_MEMORY = 512 << 20  # bytes of address space; its own needs, and the most that subscribers can cost
_NICENESS = 5  # in a contest for CPU, attestation goes first
_OOM_SCORE = 500  # in one for memory, this process goes first
_OTHER_DESCRIPTORS = 64
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves until the stream of messages ends."""
    control, listener = (int(argument) for argument in sys.argv[1:3])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    limits = _limit_itself()
    try:
        keylime_logging.setup("verifier", os.environ)
    except KeylimeError as error:
        sys.exit(f"ZeroMQ broker: error: {error}")
    work = _serve(socket.socket(fileno=control), socket.socket(fileno=listener), limits)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


async def _serve(control: socket.socket, listener: socket.socket, limits: ConnectionLimits) -> None:
    publisher = RevocationPublisher(listener, limits)
    reader, writer = await asyncio.open_unix_connection(sock=control)
    await publisher.start()
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            number, published_at, size = HEADER.unpack(await reader.readexactly(HEADER.size))
            body = await reader.readexactly(size)
            if published_at == WITHDRAWAL:
                starts = range(0, size, DIGEST_SIZE)
                publisher.messages.withdraw({body[start : start + DIGEST_SIZE] for start in starts})
            elif body:
                publisher.publish_body(body, published_at)
            writer.write(ACKNOWLEDGEMENT.pack(number))
    await publisher.close()


def _die_with_parent() -> None:
    """Should this process hang when the verifier is killed, it must not go on holding the port."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _limit_itself() -> ConnectionLimits:
    """Bounds for this process, and how many connections they leave room for."""
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hardest = resource.getrlimit(resource.RLIMIT_AS)
    most = MAX_MEMORY if hardest == resource.RLIM_INFINITY else min(MAX_MEMORY, hardest)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    wanted = ConnectionLimits().total + _OTHER_DESCRIPTORS
    _, hardest = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted if hardest == resource.RLIM_INFINITY else min(wanted, hardest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    return ConnectionLimits(total=max(files - _OTHER_DESCRIPTORS, 1))


if __name__ == "__main__":
    main()
