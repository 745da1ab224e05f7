"""A verifier that loses its database without a word: what it sends does not arrive, and nothing says so."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from tests.fakes.postgresql import PostgresServer, running_postgresql
from tests.fakes.two_machines import TwoMachines, two_machines
from tests.fakes.verifier_process import VerifierProcess, sharing

LEASE_S = 2.0
INTERVAL_S = 0.2
ANSWER_S = 0.1  # from the moment a question is sent until the agent has noted when it came
RECONNECT_S = 8.0  # attempts to connect that were made in vain are repeated after 1, 2 and 4 seconds
OPTIONS = {
    "KEYLIME_VERIFIER_LEASE": str(LEASE_S),
    "KEYLIME_VERIFIER_QUOTE_INTERVAL": str(INTERVAL_S),
    "KEYLIME_VERIFIER_RETRY_INTERVAL": str(INTERVAL_S),
    "KEYLIME_VERIFIER_MAX_RETRIES": "100000",
}


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    with two_machines() as made:
        yield made


def play(act: Callable[[PostgresServer], Coroutine[None, None, None]], machines: TwoMachines) -> None:
    """Acts on the machine that has the database."""

    def here() -> None:
        with running_postgresql(machines.for_database.here) as postgres:
            asyncio.run(act(postgres))

    machines.run(here)


def far_verifier(
    directory: Path, url: str, machines: TwoMachines, postgres: PostgresServer
) -> VerifierProcess:
    """On the other machine, with the same database."""
    place = postgres.url_on(postgres.port, url.rpartition("/")[2], machines.for_database.here)
    options = {**OPTIONS, "KEYLIME_VERIFIER_DATABASE_URL": place}
    return VerifierProcess(directory, "far", options, prefix=machines.elsewhere)


def child_of(pid: int) -> int:
    """The verifier, behind the program that gave it a machine of its own."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def test_a_stop_takes_no_longer_while_the_database_is_silent(tmp_path: Path, machines: TwoMachines) -> None:
    async def act(postgres: PostgresServer) -> None:
        url = postgres.new_database()
        far = far_verifier(tmp_path, url, machines, postgres)
        async with sharing(tmp_path, url, [far]):
            machines.for_database.cut()
            await asyncio.sleep(LEASE_S / 2)  # by now it waits for the answer to a renewal
            began = time.monotonic()
            os.kill(child_of(far.pid), signal.SIGTERM)
            assert await far.ended() == 0
            assert time.monotonic() - began < 5
            assert "Traceback" not in far.text()

    play(act, machines)
