"""The process that judges strangers' evidence: one piece after the other, with limits on memory and CPU time.

It is started by `evidence_workers` as a program of its own, so that it has none of the verifier's sockets,
keys and database connections. It reads what it is asked from the socket that is its standard input, answers
there, and ends with the verifier, however that ends.
"""

import contextlib
import ctypes
import functools
import gc
import logging
import os
import resource
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Protocol

import msgspec

from keylime.errors import MalformedMessage, PolicyError
from keylime.http.exchange import HttpError, Response
from keylime.http.memory import give_back
from keylime.measured_boot.boot_policy import built_in_policies, compile_measured_boot_policy
from keylime.measured_boot.pcr_sets import PcrSet
from keylime.measured_boot.policies import load_policy_modules
from keylime.pki.library_warnings import ignore_library_warnings
from keylime_verifier.verification.evidence_answer import answer_evidence
from keylime_verifier.verification.evidence_check import EvidenceRules

log = logging.getLogger("keylime.verifier.evidence")

REQUEST = struct.Struct(">?I")  # whether the body is of 2.5 or later, and its length
ANSWER = struct.Struct(">HI")  # the HTTP code, and the length of the body
OUT_OF_MEMORY = 3  # exit status
_NICENESS = 5
_DESCRIPTORS = 16
_SET_PDEATHSIG = 1  # of prctl(2)
_FIRST_TO_GO = "1000"  # for the system, when all of its memory is used up


class Stream(Protocol):
    """The socket, as this program uses it."""

    def read(self, size: int, /) -> bytes: ...

    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...


class WorkerRules(msgspec.Struct, frozen=True):
    """The first that a worker reads, as a line of JSON: what evidence is held to, and what that may cost."""

    parent: int  # process id
    boot_policy_name: str
    boot_policy_imports: tuple[str, ...]
    ignore_tomtou: bool
    memory: int  # bytes, beside what the program needs itself
    cpu_time_s: int  # for one piece of evidence
    boot_explained_pcrs: PcrSet = PcrSet.AUTOMATIC

    def evidence_rules(self) -> EvidenceRules:
        """The rules as the appraisal takes them. Raises ConfigError for modules that cannot be loaded."""
        registry = built_in_policies()
        load_policy_modules(self.boot_policy_imports, registry)
        compile_policy = functools.partial(
            compile_measured_boot_policy,
            policy_name=self.boot_policy_name,
            registry=registry,
            explained=self.boot_explained_pcrs,
        )
        return EvidenceRules(compile_policy, self.ignore_tomtou)


def main() -> None:
    """Serves until the verifier closes its end of the socket."""
    ignore_library_warnings()
    logging.basicConfig(format="evidence worker: %(levelname)s %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # these are the verifier's business
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=0) as channel, channel.makefile("rwb") as stream:
        line = stream.readline()
        if not line:  # the verifier has thought better of it
            return
        rules = msgspec.json.decode(line, type=WorkerRules)
        _end_with(rules.parent)
        _yield_to_others()
        evidence_rules = rules.evidence_rules()
        gc.collect()
        gc.freeze()
        _limit_memory(rules.memory)
        _serve(stream, evidence_rules, rules.cpu_time_s)


def _serve(stream: Stream, rules: EvidenceRules, cpu_time_s: int) -> None:
    while header := stream.read(REQUEST.size):
        is_typed, length = REQUEST.unpack(header)
        _limit_cpu_time(cpu_time_s)
        try:
            code, answer = _answer(stream, length, rules, is_typed=is_typed)
            stream.write(ANSWER.pack(code, len(answer)))
            stream.write(answer)
            stream.flush()
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # nothing is left with which to do more
        del answer
        give_back()


def _answer(stream: Stream, length: int, rules: EvidenceRules, *, is_typed: bool) -> tuple[int, bytes]:
    try:
        response = answer_evidence(stream.read(length), rules, is_typed=is_typed)
    except HttpError as error:
        response = error.response()
    except (MalformedMessage, PolicyError) as error:
        response = Response(400, status=str(error))
    except MemoryError:
        raise
    except Exception:
        # Our defect: the peer learns that much and no more.
        log.exception("evidence could not be judged")
        response = Response(500)
    return response.code, response.encode()


def _end_with(parent: int) -> None:
    """Has the system kill this process as soon as the verifier is gone, also when it was killed itself."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # gone before that
        sys.exit(0)


def _yield_to_others() -> None:
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):  # not everywhere
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)


def _limit_memory(beside: int) -> None:
    """Address space, because what is only reserved can be touched later; and nothing is ever written."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + beside
    for what, limit in (
        (resource.RLIMIT_AS, most),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
    ):
        _, hard = resource.getrlimit(what)
        least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (least, least))


def _limit_cpu_time(seconds: int) -> None:
    """Lets the system end this process when what comes now takes longer."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = int(time.process_time()) + 1 + seconds
    resource.setrlimit(
        resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )


if __name__ == "__main__":
    main()
