"""`--follow`: one agent's status, reasons or history, shown again whenever something happens to it.

Nothing is asked for at intervals: the verifier tells its events, and what they may have changed is read then.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import to_builtins

from keylime.errors import KeylimeError
from keylime.messages.history import HistoryEvent, HistoryGap
from keylime_tenant.agent_events import News, StreamBegun, news_of
from keylime_tenant.commands.why import read_case, reasons_of
from keylime_tenant.errors import CommandFailed
from keylime_tenant.first_verdict import FirstVerdict, failure, first_verdict
from keylime_tenant.history import history_lines
from keylime_tenant.people import agent_lines, policies_in_force
from keylime_tenant.session import Session
from keylime_tenant.standing import standing_of
from keylime_tenant.terminal import moment
from keylime_tenant.told_status import ToldStatus
from keylime_tenant.why import Case, why_lines


async def follow_history(session: Session) -> None:
    """Everything that is kept, and then what happens; until the agent is deleted, or somebody has enough."""
    output = session.output
    events = await session.verifier.history(session.agent_id)
    for event in events:
        _show_event(session, event)
    if _is_gone(events[-1:]):
        return
    last = events[-1].id if events else 0
    async with aclosing(_news(session, last)) as followed:
        async for news in followed:
            match news:
                case HistoryEvent():
                    _show_event(session, news)
                    if _is_gone([news]):
                        return
                case HistoryGap(after=after, first=first):
                    output.warning(
                        "what happened between events %d and %d is not kept any more", after, first
                    )
                case StreamBegun():
                    pass


async def follow_status(session: Session) -> None:
    """How the agent stands, now and after each change.

    Raises CommandFailed when it is gone, and with `--exit-code` when it has failed.
    """
    shown: object = None
    async for status in _statuses(session):
        if (now := _standing(status)) == shown:
            continue
        shown = now
        row = {"agent_id": str(session.agent_id), **status.for_scripts()}
        session.output.followed(row, [_stamp(), *_status_lines(session, status)])
        if session.arguments.exit_code and first_verdict(status) is FirstVerdict.FAILED:
            raise failure(session.agent_id, status)


async def follow_why(session: Session) -> None:
    """The reasons, now and whenever they are other ones. Raises CommandFailed when the agent is gone."""
    shown: object = None
    async for _ in _statuses(session):
        case = await read_case(session)
        if (now := (_standing(case.status), case.left_off, case.before)) == shown:
            continue
        shown = now
        session.output.followed(to_builtins(reasons_of(case)), [_stamp(), *_why_lines(session, case)])


async def _statuses(session: Session) -> AsyncGenerator[ToldStatus, None]:
    """The status, and again after each event; what cannot be asked now is asked when events come again."""
    async with aclosing(_news(session, None)) as followed:
        async for _ in followed:
            try:
                status = await session.verifier.status(session.agent_id)
            except CommandFailed:
                raise
            except KeylimeError as error:
                session.output.waiting("%s; going on when it answers", error)
                continue
            if status is None:
                raise CommandFailed(f"{session.verifier.place} does not have agent {session.agent_id}")
            yield status


def _news(session: Session, after: int | None) -> AsyncGenerator[News, None]:
    def tell(trouble: str) -> None:
        session.output.waiting("%s; going on where it ended when the verifier answers", trouble)

    return news_of(session.agent_id, session.verifier, session.event_source, after=after, tell_trouble=tell)


def _standing(status: ToldStatus) -> object:
    """What of a status is worth a new look: no count, and no time of a pass."""
    policies = policies_in_force(status)
    return (
        standing_of(status),
        status.operational_state,
        status.last_findings,
        policies,
        status.ip,
        status.port,
    )


def _show_event(session: Session, event: HistoryEvent) -> None:
    session.output.followed(to_builtins(event), history_lines([event], session.output.terminal))


def _is_gone(events: list[HistoryEvent]) -> bool:
    return any(event.kind == "deleted" for event in events)


def _stamp() -> str:
    return moment(time.time())


def _status_lines(session: Session, status: ToldStatus) -> list[str]:
    return [*agent_lines({str(session.agent_id): status}, session.output.terminal, time.time())]


def _why_lines(session: Session, case: Case) -> list[str]:
    return [*why_lines(case, session.output.terminal, time.time())]
