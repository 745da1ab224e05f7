"""What the tests of all targets do: the seeds must pass, and some seconds of fuzzing must find nothing.

KEYLIME_FUZZ_SECONDS says how many, in CPU time (default 1 s for each target).
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.effort import IS_THOROUGH
from tests.fuzz.target import Target, Targets

SECONDS = int(os.environ.get("KEYLIME_FUZZ_SECONDS", "1"))
_JOBS = 4
_ROOT = Path(__file__).parents[2]

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None or not IS_THOROUGH,
    reason="with KEYLIME_TESTS_THOROUGH only, and where atheris is installed",
)


def try_seeds(target: Target) -> None:
    """Every seed is handled."""
    seeds = list(target.seeds())
    assert seeds
    for seed in seeds:
        target.try_one(seed)


def limit_s(targets: Targets) -> int:
    """How long the targets may take, which get CPU time only when nothing else on the machine wants it."""
    return 600 + 20 * SECONDS * len(targets)


def fuzz(targets: Targets, corpus: Path) -> None:
    """Runs all targets in a process beside this one, and prints how many inputs they had."""
    options = ["--seconds", str(SECONDS), "--corpus", str(corpus), "--jobs", str(_JOBS)]
    command = [sys.executable, "-m", "tests.fuzz", *targets, *options]
    # The command is this file's own, the names are those of the table.
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    executed = re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    assert len(executed) == len(targets)
    for name, executions in zip(targets, executed, strict=True):
        assert int(executions) > len(list(targets[name].seeds())), f"{name} got no further than its seeds"
        print(f"{name}: {executions} executions")
