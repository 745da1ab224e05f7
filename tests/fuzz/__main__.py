"""`python -m tests.fuzz TARGET ... [--seconds N] [--corpus DIR]`: coverage-guided fuzzing of parsers.

Times are CPU times of the process that runs a target. The corpus starts from captured evidence. Inputs that
fail or take too long are written to the target's directory in the corpus as crash-*;
`python -m tests.fuzz TARGET --input FILE` runs one of them again.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

try:
    import atheris
except ImportError:
    raise SystemExit(
        "tests.fuzz: error: atheris is not installed (pip install atheris; Linux on x86-64)"
    ) from None

from tests.fuzz.cpu_time import Budget

with atheris.instrument_imports(include=["keylime"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS

_CPU_SECONDS_PER_INPUT = 10
_CLOCK_SECONDS_PER_INPUT = 3600  # for C code that never returns; by the clock, a busy machine is slow
_MEMORY_MIB = 2048
_MAX_INPUT = 32768
_NICENESS = 10  # what else runs on the machine goes first


def main() -> None:
    """Runs each target for its time; the exit status is 1 when an input failed."""
    arguments = _parse_arguments()
    if arguments.input is not None:
        for name in arguments.targets:
            TARGETS[name].try_one(arguments.input.read_bytes())
        return
    corpus = arguments.corpus or Path(tempfile.mkdtemp(prefix="keylime-fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    failed = _run(arguments.targets, arguments.jobs, arguments.seconds, corpus)
    for name in arguments.targets:
        sys.stderr.write(_log_of(name, corpus).read_text(errors="replace"))
    if failed:
        sys.exit(f"tests.fuzz: failed: {', '.join(failed)} (inputs are in {corpus})")


def _log_of(name: str, corpus: Path) -> Path:
    return corpus / f"{name}.log"


def _run(names: Sequence[str], jobs: int, seconds: int, corpus: Path) -> list[str]:
    """Runs `jobs` targets at a time; the names of those that failed."""
    waiting, running, failed = list(names), dict[int, str](), []
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            running[_start(name, seconds, corpus)] = name
        child, status = os.wait()
        ended = running.pop(child)
        if status:
            failed.append(ended)
    return failed


def _start(name: str, seconds: int, corpus: Path) -> int:
    # The fuzzer ends its process; in a fork, everything is loaded and instrumented already.
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        with _log_of(name, corpus).open("wb") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
        os.nice(_NICENESS)
        _fuzz(name, seconds, corpus / name)
    return child


def _fuzz(name: str, seconds: int, corpus: Path) -> NoReturn:
    target = TARGETS[name]
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / f"seed-{sha256(seed).hexdigest()[:16]}").write_bytes(seed)
    options = [
        sys.argv[0],
        f"-timeout={_CLOCK_SECONDS_PER_INPUT}",
        f"-rss_limit_mb={_MEMORY_MIB}",
        f"-max_len={_MAX_INPUT}",
        f"-artifact_prefix={corpus}/",
        str(corpus),
    ]
    run = Budget(target.try_one, seconds, _CPU_SECONDS_PER_INPUT, leave=lambda: os._exit(0))
    atheris.Setup(options, run)
    atheris.Fuzz()
    os._exit(0)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz parsers.")
    names = ", ".join(sorted(TARGETS))
    parser.add_argument("targets", nargs="+", choices=sorted(TARGETS), metavar="TARGET", help=names)
    parser.add_argument("--seconds", type=int, default=60, help="of CPU for each (default 60; 0: no end)")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default 1)")
    parser.add_argument("--corpus", type=Path, help="where inputs are kept (default: a temporary directory)")
    parser.add_argument("--input", type=Path, help="run this one input instead")
    return parser.parse_args()


if __name__ == "__main__":
    main()
