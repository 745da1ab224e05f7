"""`python -m tests.mutation`: disables or inverts each check of the verification core, one after another.

For each mutant the tests of its module run in a copy of the project; they must fail. A mutant that lives is a
missing test, unless `justified.txt` says why no test can tell (docs/testing.md).
"""

import argparse
import contextlib
import importlib
import io
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mutation.mutants import Mutant, mutants_of
from tests.mutation.scope import SCOPE

ROOT = Path(__file__).parents[2]
JUSTIFIED = Path(__file__).with_name("justified.txt")
_COPIED = ("keylime", "agent", "registrar", "tenant", "verifier", "tests", "config", "pyproject.toml")
# A mutant that loops is killed, too, before it takes the memory of the machine. What its tests may take is
# told by what they take without a mutant.
_CPU_SECONDS = 180
_CPU_FACTOR, _CPU_START = 3, 10
_MEMORY = 2 << 30
# What tests import and mutation does not touch is loaded once; children are forked from here.
_PRELOADED = (
    "cryptography.x509",
    "cryptography.hazmat.primitives.asymmetric.rsa",
    "msgspec",
    "re2",
    "hypothesis.stateful",
    "tornado.web",
    "xdist.plugin",
)
_KILLED = (
    pytest.ExitCode.TESTS_FAILED,
    pytest.ExitCode.INTERRUPTED,  # nothing to import
    pytest.ExitCode.INTERNAL_ERROR,  # no memory left to report a failure
)


def main() -> int:
    """Runs the mutants of the chosen modules and lists those that live. The exit status is 1 if any does."""
    arguments = _parse_arguments()
    for name in _PRELOADED:
        importlib.import_module(name)
    justified = _justified()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="keylime-mutation-") as scratch:
        _copy_project(Path(scratch))
        for path in arguments.modules or SCOPE:
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            if not _tests_pass(Path(scratch), SCOPE[path], _CPU_SECONDS, keep_bytecode=True):
                raise SystemExit(f"tests.mutation: error: the tests of {path} fail without a mutant")
            usual = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
            cpu_seconds = min(_CPU_START + math.ceil(_CPU_FACTOR * usual), _CPU_SECONDS)
            mutants = mutants_of(path, (Path(scratch) / path).read_text("utf-8"))
            if stale := _of_module(path, justified) - {mutant.key for mutant in mutants}:
                raise SystemExit(f"tests.mutation: error: justified.txt names no mutant: {min(stale)}")
            counts: Counter[str] = Counter()
            for mutant in mutants:
                if arguments.only not in mutant.key:
                    continue
                if mutant.key in justified and not arguments.all:
                    counts["justified"] += 1
                elif _survives(Path(scratch), path, mutant, cpu_seconds):
                    counts["live"] += 1
                    print(f"LIVES  {mutant.key}  (line {mutant.line})", flush=True)
                else:
                    counts["killed"] += 1
            print(_summary(path, counts), flush=True)
            total += counts
    print(_summary("total", total))
    return 1 if total["live"] else 0


def _summary(what: str, counts: Counter[str]) -> str:
    shares = ", ".join(f"{counts[kind]} {kind}" for kind in ("killed", "justified", "live"))
    return f"{what}: {counts.total()} mutants, {shares}"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation", description="Mutate the verification core."
    )
    parser.add_argument("modules", nargs="*", choices=[[], *SCOPE], metavar="MODULE", help="default: all")
    parser.add_argument("--only", default="", help="only mutants whose key contains this text")
    parser.add_argument("--all", action="store_true", help="run the justified ones as well")
    return parser.parse_args()


def _justified() -> set[str]:
    lines = JUSTIFIED.read_text("utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def _of_module(path: str, keys: set[str]) -> set[str]:
    return {key for key in keys if key.startswith(f"{path} ")}


def _copy_project(scratch: Path) -> None:
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, scratch / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis")
            )
        else:
            shutil.copy(source, scratch / name)


def _survives(scratch: Path, path: str, mutant: Mutant, cpu_seconds: int) -> bool:
    target = scratch / path
    original, found = target.read_text("utf-8"), target.stat()
    times = (found.st_atime_ns, found.st_mtime_ns)
    target.write_text(mutant.source, "utf-8")
    try:
        return _tests_pass(scratch, SCOPE[path], cpu_seconds, keep_bytecode=False)
    finally:
        # The time of the file as well, so that its bytecode is taken again.
        target.write_text(original, "utf-8")
        os.utime(target, ns=times)


def _tests_pass(scratch: Path, tests: Sequence[str], cpu_seconds: int, *, keep_bytecode: bool) -> bool:
    child = os.fork()
    if child == 0:
        code = pytest.ExitCode.INTERNAL_ERROR.value
        try:
            code = _run_tests(scratch, tests, cpu_seconds, keep_bytecode=keep_bytecode)
        finally:  # whatever happened, nothing of the parent may run here
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (pytest.ExitCode.OK, *_KILLED, -signal.SIGXCPU):
        raise SystemExit(f"tests.mutation: error: pytest ended with status {code}")
    return code == pytest.ExitCode.OK


def _run_tests(scratch: Path, tests: Sequence[str], cpu_seconds: int, *, keep_bytecode: bool) -> int:
    """In the child: pytest on the copy, in silence, up to the first failure."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sys.dont_write_bytecode = not keep_bytecode
    os.chdir(scratch)
    sys.path[:] = [str(scratch), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("keylime", "tests")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    # Hypothesis is among what is preloaded; it has no assertions that pytest would want to rewrite.
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for test in tests:  # one by one, since most mutants fail before the others need to be imported
            code = pytest.main([*options, test])
            if code != pytest.ExitCode.OK:
                return int(code)
    return pytest.ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
