"""Files of a tree hashed by `keylime-policy create runtime`, and by find, xargs and sha256sum beside it.

    python benchmarks/policy_files.py [FILES]

Both use two processors and read the same files from memory, turn about; the best round of each counts.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

FILES = 100_000
BUDGET = 0.9  # of the speed of sha256sum
_ROUNDS = 3
_IN_DIRECTORY = 100
_SEED = 1
_MAX_SIZE = 4 << 20


def make_tree(top: Path, files: int) -> int:
    """Files of sizes as in a root file system, median 4 KiB, mean 20 KiB; how many bytes they are."""
    chance = random.Random(_SEED)  # noqa: S311 - sizes
    content = chance.randbytes(2 * _MAX_SIZE)
    total = 0
    directory = top
    for number in range(files):
        if number % _IN_DIRECTORY == 0:
            directory = top / f"d{number // _IN_DIRECTORY // 40}" / f"e{number // _IN_DIRECTORY % 40}"
            directory.mkdir(parents=True)
        size = min(int(chance.lognormvariate(8.3, 1.8)), _MAX_SIZE)
        start = chance.randrange(_MAX_SIZE)
        (directory / f"f{number % _IN_DIRECTORY}").write_bytes(content[start : start + size])
        total += size
    return total


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds by the clock, and of processors."""

    wall: float
    cpu: float


def taken(action: Callable[[], object]) -> Taken:
    """What the processes that it starts take."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    action()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(time.perf_counter() - began, cpu)


def by_sha256sum(top: Path) -> None:
    """As an operator would do it with the tools of the system."""
    command = f"find '{top}' -type f -print0 | xargs -0 -n 256 -P2 sha256sum >/dev/null"
    subprocess.run(["/bin/sh", "-c", command], check=True)  # noqa: S603 - ours


def by_policy_tool(top: Path, output: Path) -> None:
    """The whole program, from its start to the policy that it has written."""
    program = Path(sys.executable).parent / "keylime-policy"
    arguments = ("create", "runtime", "--rootfs", str(top), "-o", str(output))
    subprocess.run([str(program), *arguments], check=True, capture_output=True)  # noqa: S603 - ours


def main() -> int:
    """Prints both; the status is 1 when the budget is missed."""
    files = int(sys.argv[1]) if len(sys.argv) > 1 else FILES
    if os.getuid() != 0:
        print("policy_files: only files of root are hashed, so this needs root", file=sys.stderr)
        return 0
    home = Path(tempfile.mkdtemp(prefix="keylime-policy-files-"))
    try:
        size = make_tree(home / "tree", files)
        policy = home / "policy.json"
        rounds = [
            (
                taken(lambda: by_sha256sum(home / "tree")),
                taken(lambda: by_policy_tool(home / "tree", policy)),
            )
            for _ in range(_ROUNDS)
        ]
        made = len(json.loads(policy.read_text())["digests"])
    finally:
        shutil.rmtree(home)
    theirs, ours = (
        Taken(min(one.wall for one in times), min(one.cpu for one in times))
        for times in zip(*rounds, strict=True)
    )
    table = Table(title=f"{made} files, {size >> 20} MiB, best of {_ROUNDS} rounds")
    for heading in ("", "seconds", "CPU seconds", "files/s"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, one in (("find | xargs -P2 sha256sum", theirs), ("keylime-policy create runtime", ours)):
        table.add_row(name, f"{one.wall:.2f}", f"{one.cpu:.2f}", f"{files / one.wall:,.0f}")
    console = Console()
    console.print(table)
    speed = theirs.wall / ours.wall
    met = speed >= BUDGET and made == files
    console.print(f"{'met' if met else 'MISSED'}: {speed:.2f} of its speed, budget {BUDGET}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
