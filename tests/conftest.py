"""What holds for all tests."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.effort import examples

# How long one example takes says how busy the machine is. Tests of speed measure processor time themselves.
settings.register_profile("tests", deadline=None, max_examples=examples(100))
settings.load_profile("tests")

# A minute and more each, mostly of waiting. Side by side they would leave processors without work, and who
# began one of them last would keep the others waiting.
_LONG = ("test_verifier_faults.py", "test_verifier_waits.py", "test_verifiers_share.py")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """With `-n logical` one for each processor; with `-n auto` five for two, since programs often wait."""
    processors = len(os.sched_getaffinity(0))
    return processors if config.option.numprocesses == "logical" else -(-5 * processors // 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rest = [item for item in items if item.path.name not in _LONG]
    slow = sum("unit" not in item.path.parts for item in rest)  # they come first
    for number, name in reversed(list(enumerate(_LONG))):
        at = slow * number // len(_LONG)
        rest[at:at] = [item for item in items if item.path.name == name]
    items[:] = rest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """Collected tests live until the end: to look at them again and again is a third of the work."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _umask_stays() -> Iterator[None]:
    """Programs that are tried within this process set theirs for good."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)
