"""What tests of the house read of the whole code is let go of when their file is over.

Millions of nodes of syntax trees that live on make each full garbage collection a second long, during which a
service of a later test, in the same process, answers nobody.
"""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _lets_go(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for one in vars(request.module).values():
        if hasattr(one, "cache_clear"):
            one.cache_clear()
