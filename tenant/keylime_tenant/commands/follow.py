"""`--follow`: what a command shows of one agent, shown again whenever something happens to it.

Nothing is asked for at intervals: the verifier tells its events, and what they may have changed is read then.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from keylime.errors import KeylimeError
from keylime_tenant.agent_events import News, news_of
from keylime_tenant.errors import CommandFailed
from keylime_tenant.first_verdict import FirstVerdict, failure, first_verdict
from keylime_tenant.people import agent_lines, policies_in_force
from keylime_tenant.session import Session
from keylime_tenant.standing import standing_of
from keylime_tenant.terminal import moment
from keylime_tenant.told_status import ToldStatus

T = TypeVar("T")


async def follow_status(session: Session) -> None:
    """How the agent stands, now and after each change.

    Raises CommandFailed when it is gone, and with `--exit-code` when it has failed.
    """

    async def read() -> ToldStatus:
        status = await session.verifier.status(session.agent_id)
        if status is None:
            raise CommandFailed(f"{session.verifier.place} does not have agent {session.agent_id}")
        return status

    def show(status: ToldStatus) -> None:
        lines = agent_lines({str(session.agent_id): status}, session.output.terminal, time.time())
        row = {"agent_id": str(session.agent_id), **status.for_scripts()}
        session.output.followed(row, [stamp(), *lines])
        if session.arguments.exit_code and first_verdict(status) is FirstVerdict.FAILED:
            raise failure(session.agent_id, status)

    await keep_showing(session, read, show, standing_of_interest)


async def keep_showing(
    session: Session,
    read: Callable[[], Awaitable[T]],
    show: Callable[[T], None],
    of_interest: Callable[[T], object],
) -> None:
    """Shows what `read` gives, now and after each event that has changed what is `of_interest` in it.

    What cannot be asked now is asked when events come again. Raises CommandFailed.
    """
    shown: object = None
    async with aclosing(news(session, None)) as followed:
        async for _ in followed:
            try:
                found = await read()
            except CommandFailed:
                raise
            except KeylimeError as error:
                session.output.waiting("%s; going on when it answers", error)
                continue
            if (now := of_interest(found)) != shown:
                shown = now
                show(found)


def news(session: Session, after: int | None) -> AsyncGenerator[News, None]:
    """What happens to the session's agent after an event, or from now on."""

    def tell(trouble: str) -> None:
        session.output.waiting("%s; going on where it ended when the verifier answers", trouble)

    return news_of(
        session.agent_id,
        session.verifier,
        session.event_source,
        after=after,
        tell_trouble=tell,
        sleep=session.sleep,
    )


def standing_of_interest(status: ToldStatus) -> object:
    """What of a status is worth a new look: no count, and no time of a pass."""
    return (
        standing_of(status),
        status.operational_state,
        status.last_findings,
        policies_in_force(status),
        status.ip,
        status.port,
    )


def stamp() -> str:
    """The line above what is shown again."""
    return moment(time.time())
