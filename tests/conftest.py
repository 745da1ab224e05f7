"""What holds for all tests."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long one example takes says how busy the machine is. Tests of speed measure processor time themselves.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_xdist_auto_num_workers() -> int:
    """Two for each processor: half of the time tests wait, for leases that end and for polls."""
    return 2 * len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _umask_stays() -> Iterator[None]:
    """Programs that are tried within this process set theirs for good."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)
