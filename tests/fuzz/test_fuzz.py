"""Every fuzz target runs for a moment, so that it stays usable and shallow defects show at once.

KEYLIME_FUZZ_SECONDS says for how long (default 1 s for each target).
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

SECONDS = int(os.environ.get("KEYLIME_FUZZ_SECONDS", "1"))
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_seed_is_handled(name: str) -> None:
    seeds = list(TARGETS[name].seeds())
    assert seeds
    for seed in seeds:
        TARGETS[name].try_one(seed)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.timeout(60 + 3 * SECONDS)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS), "--corpus", str(tmp_path)]
    # The command is this file's own, the names are those of the table.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    executed = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    assert executed is not None
    print(f"{name}: {executed[1]} executions")
