"""Whom new revocations go to: in a large fleet not to each agent any more.

When n machines fall, n² requests tell every one of every other. From some size on agents are told by what
scales: the ZeroMQ broker, and whatever the webhook's receiver and the revocation list do for them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from keylime.database.engine import DatabaseUnavailable
from keylime_verifier.agents.deliveries import AGENT

log = logging.getLogger("keylime.revocation_notifier")

_LOOK_AGAIN_S = 60.0

Target = tuple[str, str]
"""A channel and a target of it."""
AnyMoreThan = Callable[[int], Awaitable[bool]]
"""Whether there are more agents than that. Raises DatabaseUnavailable."""


def targets_of_fleet(targets: tuple[Target, ...], *, is_large: bool) -> tuple[Target, ...]:
    """The `targets` that a revocation goes to. Those who can be told in no other way are told one by one."""
    others = tuple(target for target in targets if target[0] != AGENT)
    return others if is_large and others else targets


class Audience:
    """The targets of new revocations, as the size of the fleet permits; it is looked at once a minute."""

    def __init__(self, targets: tuple[Target, ...], limit: int, any_more_than: AnyMoreThan) -> None:
        """`targets` are those of the enabled channels; more than `limit` agents are many, 0 never."""
        self._all = self._targets = targets
        self._limit = limit
        self._any_more_than = any_more_than
        self._is_large = False

    @property
    def _has_choice(self) -> bool:
        return self._limit > 0 and any(channel == AGENT for channel, _ in self._all)

    def targets(self) -> tuple[Target, ...]:
        """Whom a revocation goes to that is made now."""
        return self._targets

    async def look(self) -> None:
        """Counts the agents; a change is told in the log. Raises DatabaseUnavailable."""
        if not self._has_choice:
            return
        was_large, self._is_large = self._is_large, await self._any_more_than(self._limit)
        self._targets = targets_of_fleet(self._all, is_large=self._is_large)
        if self._is_large == was_large:
            return
        if not self._is_large:
            log.info("there are at most %d agents: each is told of revocations by a request", self._limit)
        elif self._targets == self._all:
            log.warning(
                "there are more than %d agents (max_agents_notified), and each is told of each revocation by "
                "a request of its own, which takes long when many fall: enable zeromq or webhook in "
                "[revocations] enabled_revocation_notifications",
                self._limit,
            )
        else:
            log.warning(
                "there are more than %d agents (max_agents_notified): new revocations are not sent to each "
                "of them, but go out over %s only",
                self._limit,
                ", ".join(channel for channel, _ in self._targets),
            )

    async def run(self) -> None:
        """Looks again and again, for ever."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN_S)
            try:
                await self.look()
            except DatabaseUnavailable as error:
                log.debug("%s; revocations go to whom they went to before", error)
