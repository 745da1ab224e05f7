"""A running installation for each module: real daemons, real software TPMs, on loopback addresses."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.lab.installation import Options
from tests.lab.site import QUICK, Site, open_site, reserve_subnet

OpenSite = Callable[[Options], AbstractContextManager[Site]]


@pytest.fixture(scope="session")
def subnets() -> Iterator[Iterator[str]]:
    """Subnets that only this process of the test run uses."""
    with reserve_subnet() as subnet:
        yield (f"{subnet}.{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def new_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the disks of all nodes of a module's site."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def forks() -> bool:
    """Whether programs are forked from a process that has imported them: a module may want the scripts."""
    return True


@pytest.fixture(scope="module")
def site(new_directory: Path, subnets: Iterator[str], forks: bool) -> Iterator[Site]:
    """Verifier, registrar and tenant, polling often."""
    with open_site(new_directory, next(subnets), QUICK, forks=forks) as opened:
        yield opened
