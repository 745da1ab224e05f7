"""What a long measurement list costs a verifier in memory, whoever sends it."""

import tracemalloc

import pytest

from tests.evidence import policy_of
from tests.ima_rounds import Kernel, Verifier

NO_FILE = policy_of([])


def machine() -> Kernel:
    """One that has measured the file "/a"."""
    kernel = Kernel()
    kernel.run("/a", "1")
    return kernel


ONE_FILE = policy_of([machine().text()])


@pytest.mark.parametrize("noise", [b"\n", b"a\n", b"10 00 ima-ng x y\n"], ids=["blank", "short", "broken"])
def test_i29_half_a_million_lines_that_no_kernel_writes_are_not_all_looked_at(noise: bytes) -> None:
    kernel = machine()
    text = noise * 500_000 + kernel.text()
    tracemalloc.start()
    try:
        steps = Verifier(ONE_FILE).steps(text, kernel.pcr)
        assert sum(1 for _ in steps) < 125  # of which each is some milliseconds
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # nothing for each line, not even a pointer
    finally:
        tracemalloc.stop()


def test_i29_a_long_list_costs_little_more_memory_than_itself() -> None:
    """Whatever must be judged of it: none of these files is allowed."""
    line = b"10 " + b"ab" * 20 + b" ima-ng sha256:" + b"cd" * 32 + b" /usr/bin/some-file-%06d\n"
    text = b"".join(line % number for number in range(10_000))
    tracemalloc.start()
    try:
        steps = Verifier(NO_FILE).steps(text, bytes(31) + b"\1")
        assert sum(1 for _ in steps) >= 3 * 10_000 // 500
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
