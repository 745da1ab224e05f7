"""`--follow`: what a command shows of one agent, shown again whenever something happens to it.

Nothing is asked for at intervals: the verifier tells its events, and what they may have changed is read then.
A verifier that puts a question off, or is away when it has answered before, is asked until it answers.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from keylime.errors import PeerUnreachable
from keylime_tenant.errors import CommandFailed, PutOff
from keylime_tenant.first_verdict import FirstVerdict, failure, first_verdict
from keylime_tenant.news import News, StreamBegun, news_of
from keylime_tenant.people import agent_lines, policies_in_force
from keylime_tenant.session import Session
from keylime_tenant.standing import standing_of
from keylime_tenant.terminal import moment
from keylime_tenant.told_status import ToldStatus

T = TypeVar("T")

_AGAIN_S = 2.0


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

    Raises CommandFailed, and PeerUnreachable when the verifier was never there.
    """
    shown: object = None
    async with aclosing(news(session, None)) as followed:
        async for _ in followed:
            found = await insisting(session, read)
            if (now := of_interest(found)) != shown:
                shown = now
                show(found)


async def insisting(session: Session, read: Callable[[], Awaitable[T]]) -> T:
    """What `read` gives as soon as the verifier answers. Raises CommandFailed for any other refusal.

    Raises PeerUnreachable when the verifier was never there, which is an error as it is everywhere.
    """
    told, is_met = "", False
    while True:
        try:
            await session.verifier.version()
            is_met = True
            found = await read()
        except (PutOff, PeerUnreachable) as error:
            if not is_met and not isinstance(error, PutOff):
                raise
            if str(error) != told:
                told = str(error)
                session.output.waiting("%s; asked again every %g s", error, _AGAIN_S)
            await session.sleep(_AGAIN_S)
        else:
            if told:
                _answers_again(session)
            return found


async def news(session: Session, after: int | None) -> AsyncGenerator[News, None]:
    """What happens to the session's agent after an event, or from now on.

    Raises PeerUnreachable when the verifier was never there. Later trouble is told, each once.
    """
    await insisting(session, session.verifier.version)
    told = ""

    def tell(trouble: str) -> None:
        nonlocal told
        if trouble != told:
            told = trouble
            session.output.waiting("%s; going on where it ended when the verifier answers", trouble)

    stream = news_of(
        session.verifier,
        session.open_events,
        agent_id=session.agent_id,
        after=after,
        tell_trouble=tell,
        sleep=session.sleep,
    )
    async with aclosing(stream):
        async for one in stream:
            if isinstance(one, StreamBegun):
                if told:
                    _answers_again(session)
                told = ""
            yield one


def _answers_again(session: Session) -> None:
    session.output.waited("%s answers again", session.verifier.place)


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
