"""The budget of bodies at work in a server: who waits is woken, who loses is told, memory is given back."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from keylime.http.budget import BodyBudget, BodyClaim, ClaimChanges, State
from keylime.http.exchange import HttpError
from keylime.http.memory import give_back

_SETTLE_S = 0.1  # how often those that wait are looked after
_RETRY_AFTER_S = 5.0
_WORTH_GIVING_BACK = 8 << 20  # bytes
_GIVE_BACK_AFTER_S = 3.0  # and not more often, since it takes a moment


class NoRoom(HttpError):
    """There is no room for a body: 429 when its own source has too many, 503 when all together have."""


Lose: TypeAlias = Callable[[NoRoom], None]


class Bodies:
    """The bodies that share `total` bytes."""

    def __init__(self, total: int) -> None:
        self._budget = BodyBudget(total)
        self._reservations: dict[BodyClaim, Reservation] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._giving_back: asyncio.TimerHandle | None = None

    @property
    def in_use(self) -> int:
        """Bytes that are set aside now."""
        return self._budget.in_use

    def reserve(self, prefixes: tuple[str, ...], size: int, lose: Lose) -> "Reservation":
        """Room for a body of `size` bytes, or a place among those that wait for it.

        `lose` is called when a body that has its room must yield it before it is complete.
        """
        claim, changes = self._budget.claim(prefixes, size, self._now())
        reservation = Reservation(self, claim, lose)
        if claim.state is not State.ENDED:
            self._reservations[claim] = reservation
        self._carry_out(changes)
        return reservation

    def receive(self, claim: BodyClaim, count: int) -> None:
        """Counts bytes of a body. Raises NoRoom when it outgrows what there is."""
        fits, changes = self._budget.receive(claim, count, self._now())
        self._carry_out(changes)
        if not fits:
            raise self.refusal(claim)

    def complete(self, claim: BodyClaim) -> None:
        """A body has come."""
        self._budget.complete(claim)

    def release(self, claim: BodyClaim) -> None:
        """A body is not needed any more."""
        self._reservations.pop(claim, None)
        self._budget.release(claim)
        self._look_later()
        if not self._budget.in_use and self._budget.most_in_use >= _WORTH_GIVING_BACK:
            self._give_back_later()

    def refusal(self, claim: BodyClaim) -> NoRoom:
        """What to answer when there is no room for `claim`."""
        if self._budget.exceeds_share(claim):
            return NoRoom(429, "too many requests from your network, try later", retry_after_s=_RETRY_AFTER_S)
        return NoRoom(503, "too many requests, try later", retry_after_s=_RETRY_AFTER_S)

    def _carry_out(self, changes: ClaimChanges) -> None:
        for claim in changes.granted:
            self._reservations[claim].wake()
        for claim in changes.displaced:
            reservation = self._reservations.pop(claim, None)
            if reservation is not None:
                reservation.lose()
        self._look_later()

    def _look_later(self) -> None:
        if self._budget.has_waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SETTLE_S, self._look)

    def _look(self) -> None:
        self._timer = None
        self._carry_out(self._budget.settle(self._now()))

    def _give_back_later(self) -> None:
        if self._giving_back is None:
            self._giving_back = asyncio.get_running_loop().call_later(_GIVE_BACK_AFTER_S, self._give_back)

    def _give_back(self) -> None:
        self._giving_back = None
        if not self._budget.in_use:
            self._budget.most_in_use = 0
            give_back()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class Reservation:
    """The room of one body, as the exchange sees it."""

    def __init__(self, bodies: Bodies, claim: BodyClaim, lose: Lose) -> None:
        self._bodies = bodies
        self._claim = claim
        self._lose = lose
        self._woken: asyncio.Future[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether the room is there."""
        return self._claim.state is State.HELD

    async def wait(self, limit_s: float) -> None:
        """Returns when the room is there. Raises NoRoom when it does not come in time, or never will."""
        if self._claim.state is State.WAITING:
            self._woken = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._woken], timeout=limit_s)
        if self._claim.state is not State.HELD:
            error = self._bodies.refusal(self._claim)
            self.release()
            raise error

    def receive(self, count: int) -> None:
        """Counts bytes that came. Raises NoRoom when there is no room for them."""
        self._bodies.receive(self._claim, count)

    def complete(self) -> None:
        """The body is here."""
        self._bodies.complete(self._claim)

    def release(self) -> None:
        """Gives the room back; harmless when it is gone."""
        if self._claim.state is not State.ENDED:
            self._bodies.release(self._claim)

    def wake(self) -> None:
        """The room is there now."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def lose(self) -> None:
        """The room is gone."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
        else:
            self._lose(self._bodies.refusal(self._claim))
