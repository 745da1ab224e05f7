"""What a verdict needs of the database, however long that is away: no evidence is given up for it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from keylime.database.engine import DatabaseUnavailable, is_away

log = logging.getLogger("keylime.verifier")

FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 5.0

ResultT = TypeVar("ResultT")


async def insisting(agent_id: str, read: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """What `read` finds, or has written, as soon as the database answers; its absence alone is not raised.

    Raises DatabaseUnavailable if the database is there and refuses what it is to store.
    """
    delay_s = FIRST_RETRY_S
    while True:
        try:
            return await read()
        except DatabaseUnavailable as error:
            if not is_away(error):
                raise
            level = logging.WARNING if delay_s == FIRST_RETRY_S else logging.DEBUG
            log.log(level, "agent %s: its evidence waits for its verdict: %s", agent_id, error)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_RETRY_S)
