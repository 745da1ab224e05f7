"""Certificates of agents that end though their agents should have renewed them: told before callers notice.

Agents renew their own 30 days before its end and register it. Whoever calls them goes by the key, and still
works with one that has ended; but an agent that does not renew may do other things not, either.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from keylime.database.engine import DatabaseUnavailable
from keylime.errors import KeylimeError
from keylime.pki.agent_certificate import OVERDUE_MARGIN, read_agent_certificate

log = logging.getLogger(__name__)

_AT_ONCE = 200
_INTERVAL_S = 3600.0
_TELL_INTERVAL = timedelta(days=1)
_SHOWN = 5

ReadPage: TypeAlias = Callable[[str, int], Awaitable[Sequence[tuple[str, str]]]]
"""Ids of agents after one, in their order, with their PEM certificates; at most so many."""


@dataclass(frozen=True, slots=True)
class Ends:
    """When certificates of agents end: the first of all, and those that are overdue, by their ends."""

    first: datetime | None
    overdue: Sequence[tuple[datetime, str]]


class AgentCertificates:
    """Looks at all of them now and then."""

    def __init__(
        self,
        read: ReadPage,
        measure: Callable[[float], None],
        *,
        is_speaker: bool = True,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`measure` is told when the first one ends, in seconds since the epoch, 0 for none.

        One of several equal processes is the speaker: it alone logs, and counts.
        """
        self._read = read
        self._measure = measure
        self._is_speaker = is_speaker
        self._now = now
        self._ends = Ends(None, ())
        self._told_at: datetime | None = None

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            try:
                await self.look()
            except DatabaseUnavailable as error:
                log.debug("%s; certificates of agents are looked at later", error)
            await asyncio.sleep(_INTERVAL_S)

    async def look(self) -> None:
        """Looks once. Raises DatabaseUnavailable."""
        now = self._now()
        self._ends = await self._looked(now)
        if not self._is_speaker:
            return
        self._measure(0.0 if self._ends.first is None else self._ends.first.timestamp())
        if not self._ends.overdue:
            self._told_at = None
        elif self._told_at is None or abs(now - self._told_at) >= _TELL_INTERVAL:
            self._told_at = now
            self._tell(self._ends.overdue)

    def remark(self) -> str | None:
        """What somebody should see to, in words fit for anyone."""
        overdue = self._ends.overdue
        if not overdue:
            return None
        whose = "that of an agent" if len(overdue) == 1 else f"those of {len(overdue)} agents"
        ends = overdue[0][0]
        verb = "ended" if ends <= self._now() else "ends"
        first = "it" if len(overdue) == 1 else "the first"
        return f"{whose} should have been renewed, {first} {verb} on {ends:%Y-%m-%d}: see the log"

    async def _looked(self, now: datetime) -> Ends:
        first: datetime | None = None
        overdue: list[tuple[datetime, str]] = []
        last = ""
        while page := await self._read(last, _AT_ONCE):
            for agent_id, pem in page:
                end = _end_of(pem)
                if end is None:
                    continue
                first = end if first is None else min(first, end)
                if end - now < OVERDUE_MARGIN:
                    overdue.append((end, agent_id))
            last = page[-1][0]
            await asyncio.sleep(0)  # others have their turn
        return Ends(first, sorted(overdue))

    def _tell(self, overdue: Sequence[tuple[datetime, str]]) -> None:
        shown = ", ".join(f"{agent_id} ({end:%Y-%m-%d})" for end, agent_id in overdue[:_SHOWN])
        more = f" and {len(overdue) - _SHOWN} more" if len(overdue) > _SHOWN else ""
        log.warning(
            "TLS certificates of agents end, and were not renewed: %s%s; verifiers go by the key and still "
            "attest them: look at the log of the agent there, or restart it, which makes a new one",
            shown,
            more,
        )


def _end_of(pem: str) -> datetime | None:
    try:
        return read_agent_certificate(pem.encode("utf-8", "surrogatepass")).not_after
    except KeylimeError:  # nobody calls this agent over TLS
        return None
