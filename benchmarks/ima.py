"""CPU cost of appraising IMA lists, per entry: first time seen, and seen before in the fleet.

Run with `python benchmarks/ima.py`. The lists are synthetic (ima-sig entries without signature, paths of
usual length), the policy has 100,000 paths and 50 exclude expressions, the quote is of the SHA-256 bank.
"""

import gc
import hashlib
import json
import time
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table

from keylime.hashes import HashAlgorithm
from keylime.ima.appraisal import ImaResult, appraise_list
from keylime.ima.boot_aggregate import BootAggregates
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.measurement_list import BOOT_AGGREGATE, parse_line, split_lines
from keylime.ima.memo import EntryMemo
from keylime.ima.replay import replay
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy, parse_runtime_policy
from keylime.ima.templates import TEMPLATES, pack_fields

BANK = HashAlgorithm.SHA256
POLICY_PATHS = 100_000
EXCLUDES = 50
SIZES = (1_000, 10_000, 100_000)
BUDGET_NEW_US = 3.5
BUDGET_SEEN_US = 1.0
ROUNDS = 5


def path_of(number: int) -> str:
    if number == 0:
        return BOOT_AGGREGATE
    return f"/usr/lib/x86_64-linux-gnu/package-{number % 997}/module-{number}.so"


def digest_of(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def make_policy() -> RuntimePolicy:
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    document["digests"] = {path_of(number): [digest_of(number).hex()] for number in range(POLICY_PATHS)}
    document["excludes"] = [rf"^/var/lib/service-{number}/.*\.tmp$" for number in range(EXCLUDES)]
    return parse_runtime_policy(json.dumps(document))


def make_list(size: int) -> bytes:
    template = TEMPLATES["ima-sig"]
    lines = []
    for number in range(size):
        fields = f"sha256:{digest_of(number).hex()} {path_of(number)} ".encode()
        column = hashlib.sha1(pack_fields(template, fields), usedforsecurity=False).hexdigest().encode()
        lines.append(b"10 %s ima-sig %s\n" % (column, fields))
    return b"".join(lines)


def appraise(text: bytes, quoted: bytes, policy: RuntimePolicy, memo: EntryMemo) -> ImaResult:
    steps = appraise_list(
        text,
        bank=BANK,
        quoted=quoted,
        stated_entry=0,
        policy=policy,
        tenant_keys=None,
        boot_aggregates=BootAggregates(),
        checkpoint=ImaCheckpoint.fresh(),
        ignore_tomtou=False,
        memo=memo,
    )
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            result: ImaResult = finished.value
            if result.findings or not result.reached_end:
                raise SystemExit(f"the benchmark's own list is not accepted: {result.findings[:1]}") from None
            return result


def cpu_us(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e6


def measure(size: int, text: bytes, quoted: bytes, policy: RuntimePolicy) -> tuple[float, float]:
    """The best of some rounds, in microseconds per entry: with an empty memory, then with the same."""
    new, seen = [], []
    for _ in range(ROUNDS):
        memo = EntryMemo()
        work = partial(appraise, text, quoted, policy, memo)
        new.append(cpu_us(work) / size)
        seen.append(cpu_us(work) / size)
    return min(new), min(seen)


def main() -> None:
    policy = make_policy()
    gc.collect()
    gc.freeze()
    table = Table(title=f"IMA entries, {BANK.label} bank, CPU per entry (best of {ROUNDS})")
    for heading in (
        "entries",
        "new [us]",
        f"budget {BUDGET_NEW_US}",
        "seen [us]",
        f"budget {BUDGET_SEEN_US}",
    ):
        table.add_column(heading, justify="right")
    for size in SIZES:
        text = make_list(size)
        quoted = replay([parse_line(line) for line in split_lines(text)], BANK)
        best_new, best_seen = measure(size, text, quoted, policy)
        table.add_row(
            f"{size:,}",
            f"{best_new:.2f}",
            "kept" if best_new <= BUDGET_NEW_US else "missed",
            f"{best_seen:.2f}",
            "kept" if best_seen <= BUDGET_SEEN_US else "missed",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
