"""Events posted to the webhook, as messages of the type `event`, by one of all that share a database."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec
import sqlalchemy as sa

from keylime.database.many import insert_missing
from keylime.database.transactions import Database
from keylime.messages.history import HistoryEvent
from keylime.messages.revocation import SignedRevocation
from keylime_verifier.database.schema import event_followers

EVENT = "event"

Post = Callable[[SignedRevocation], Awaitable[None]]
"""Returns when the receiver has it. Raises PeerUnreachable, PeerRefused."""


def event_message(event: HistoryEvent) -> SignedRevocation:
    """An event in the envelope of revocations, which no key of an agent signs."""
    return SignedRevocation(msgspec.json.encode({"type": EVENT, **msgspec.to_builtins(event)}).decode(), "")


class Poster:
    """A receiver, and up to where it was told, whichever verifier has done it."""

    def __init__(self, database: Database, name: str, post: Post) -> None:
        self._database = database
        self._name = name
        self._post = post

    async def seen(self) -> int | None:
        query = sa.select(event_followers.c.through).where(event_followers.c.name == self._name)
        return await self._database.read(
            "read what a webhook was told", lambda connection: connection.execute(query).scalar()
        )

    async def bring(self, events: Sequence[HistoryEvent], seen: int) -> None:
        for event in events:
            await self._post(event_message(event))
            await self._note(event.id)
        if not events:
            await self._note(seen)

    async def _note(self, seen: int) -> None:
        def work(connection: sa.Connection) -> None:
            connection.execute(
                insert_missing(connection, event_followers), [{"name": self._name, "through": seen}]
            )
            connection.execute(
                sa.update(event_followers).where(event_followers.c.name == self._name).values(through=seen)
            )

        await self._database.write("note what a webhook was told", work)
