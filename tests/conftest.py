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

# A minute and more each, mostly of waiting: who began one of them last would keep the others waiting.
_BEGIN_WITH = ("test_verifier_faults.py", "test_verifier_waits.py", "test_verifiers_share.py")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """With `-n logical` one for each processor; with `-n auto` two, since half of the time programs wait."""
    per_processor = 1 if config.option.numprocesses == "logical" else 2
    return per_processor * len(os.sched_getaffinity(0))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _BEGIN_WITH)


def pytest_collection_finish() -> None:
    """Collected tests live until the end: to look at them again and again is a tenth of the work."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _umask_stays() -> Iterator[None]:
    """Programs that are tried within this process set theirs for good."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)
