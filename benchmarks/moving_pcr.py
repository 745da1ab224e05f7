"""Time to find PCR 10 of a quote while a machine measures without a pause: `python benchmarks/moving_pcr.py`.

A simulated machine has a list of 50,000 entries and measures a burst between two commands of its TPM. What is
timed is the agent's own work for a quote: reading the list, and finding the quoted value in it. Once as
today, at the first quote of an agent and at those after it, and once by the search alone, which is left for
lists that do not account for PCR 10 from their beginning. Process CPU time; no TPM, no network.
"""

import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from keylime.hashes import HashAlgorithm
from keylime.ima.moving_pcr import later_values
from keylime.tpm.pcr import IMA_PCR, PcrSelection
from keylime_agent.evidence import LogFile
from keylime_agent.ima_list import ImaList, ImaTail
from tests.fakes.busy_machine import BANK, BusyMachine, BusyTpm

LIST = 50_000
BURSTS = (10, 200, 1_000, 10_000)
SEARCHED = (10, 200)  # bursts for which the search alone ends soon enough to be shown
BUDGET_FIRST_S = 2.0
BUDGET_LATER_S = 0.6
_SELECTION = PcrSelection(BANK, frozenset({0, IMA_PCR}))
_NEXT = 4  # quotes after the first


class SteadyMachine(BusyMachine):
    """One that measures exactly a burst between two commands."""

    def _work(self) -> None:
        self.measure(self._burst)


class TimedTail:
    """The list's end, with the time that is spent on it."""

    def __init__(self, tail: ImaTail) -> None:
        self._tail = tail
        self.spent_s = 0.0

    def mark(self) -> None:
        start = time.process_time()
        self._tail.mark()
        self.spent_s += time.process_time() - start

    def later_values(self, bank: HashAlgorithm, value: bytes) -> Iterable[bytes]:
        start = time.process_time()
        found = self._tail.later_values(bank, value)
        self.spent_s += time.process_time() - start
        return found


def quote_times(burst: int, directory: Path) -> list[float]:
    """Seconds of CPU for the first quote and the next ones, whose values are compared with the TPM's."""
    path = directory / f"list-{burst}"
    machine = SteadyMachine(path, burst=burst)
    machine.measure(LIST)
    ima = ImaList(LogFile(path))
    ima.open()
    tpm = BusyTpm(machine)
    times = []
    for _ in range(1 + _NEXT):
        opened = ima.tail()
        if opened is None:
            raise SystemExit(f"{path} cannot be read")
        tail = TimedTail(opened)
        parts = tpm.quote(tpm.attestation_key(), _SELECTION, b"nonce", "key", tail)
        if parts.pcrs != machine.quoted:
            raise SystemExit("a quote was explained by other values than it has")
        times.append(tail.spent_s)
    ima.close()
    return times


def search_time(burst: int, directory: Path) -> float:
    """Seconds of CPU until the search has tried all that a quote after two bursts may hold."""
    path = directory / f"searched-{burst}"
    machine = SteadyMachine(path, burst=burst)
    machine.measure(3 * burst)
    lines = path.read_bytes().split(b"\n")[:-1]
    start = time.process_time()
    for _ in later_values(lines, burst, bytes(BANK.size), BANK):
        pass
    return time.process_time() - start


def main() -> None:
    """Prints the table; exits with 1 beyond the budget."""
    table = Table(
        "burst", "first quote, s", "later quotes, s", "search alone, s", title=f"list of {LIST:,} entries"
    )
    within = True
    with tempfile.TemporaryDirectory() as name:
        for burst in BURSTS:
            first, *later = quote_times(burst, Path(name))
            searched = f"{search_time(burst, Path(name)):.3f}" if burst in SEARCHED else "-"
            table.add_row(f"{burst:,}", f"{first:.3f}", f"{max(later):.3f}", searched)
            within = within and first <= BUDGET_FIRST_S and max(later) <= BUDGET_LATER_S
    console = Console()
    console.print(table)
    console.print(f"budget: {BUDGET_FIRST_S:g} s for the first, {BUDGET_LATER_S:g} s for later ones")
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
