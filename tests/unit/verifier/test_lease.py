"""What a process does by its own clock when it cannot renew its lease."""

import asyncio
from collections.abc import Callable

import pytest

from keylime_verifier.lease import Lease

LENGTH_S = 0.1


def played(act: Callable[[Lease, list[str]], None], *, seconds: float) -> list[str]:
    """What a lease said until `seconds` after `act`."""

    async def play() -> list[str]:
        said: list[str] = []
        lease = Lease(LENGTH_S, pause=lambda: said.append("pause"), resume=lambda: said.append("resume"))
        act(lease, said)
        await asyncio.sleep(seconds)
        lease.close()
        return said

    return asyncio.run(play())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_work_is_paused_when_the_lease_ends_counted_from_before_it_was_granted() -> None:
    def act(lease: Lease, said: list[str]) -> None:
        lease.renewed(now() - 0.9 * LENGTH_S, is_contested=True)
        assert said == []

    assert played(act, seconds=0.5 * LENGTH_S) == ["pause"]


def test_work_goes_on_as_long_as_the_lease_is_renewed() -> None:
    def act(lease: Lease, _said: list[str]) -> None:
        lease.renewed(now() - 0.9 * LENGTH_S, is_contested=True)
        lease.renewed(now(), is_contested=True)

    assert played(act, seconds=0.5 * LENGTH_S) == []


def test_work_goes_on_without_a_lease_when_nobody_else_could_do_it() -> None:
    def act(lease: Lease, _said: list[str]) -> None:
        lease.renewed(now() - 0.9 * LENGTH_S, is_contested=True)
        lease.renewed(now() - 2 * LENGTH_S, is_contested=False)

    assert played(act, seconds=2 * LENGTH_S) == []


def test_what_is_granted_so_late_that_it_is_over_changes_nothing() -> None:
    def act(lease: Lease, said: list[str]) -> None:
        lease.renewed(now() - 2 * LENGTH_S, is_contested=True)
        assert said == ["pause"]
        lease.renewed(now() - 2 * LENGTH_S, is_contested=True)

    assert played(act, seconds=0) == ["pause"]


@pytest.mark.parametrize("is_contested", [True, False])
def test_work_is_resumed_once_when_the_lease_is_held_again(is_contested: bool) -> None:
    def act(lease: Lease, _said: list[str]) -> None:
        lease.renewed(now() - 2 * LENGTH_S, is_contested=True)
        lease.renewed(now(), is_contested=is_contested)
        lease.renewed(now(), is_contested=is_contested)

    assert played(act, seconds=0) == ["pause", "resume"]
