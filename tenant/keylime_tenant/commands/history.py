"""`history`: what happened to an agent, who did it, and what was found."""

from contextlib import aclosing

from msgspec import to_builtins

from keylime.messages.history import HistoryEvent, HistoryGap
from keylime_tenant.commands.follow import insisting, news
from keylime_tenant.doing import doing
from keylime_tenant.history import history_lines
from keylime_tenant.json_documents import History
from keylime_tenant.news import StreamBegun
from keylime_tenant.session import Session


async def history(session: Session) -> None:
    """Everything that the verifier has kept about one agent, also after its deletion."""
    if session.arguments.follow:
        await _follow(session)
        return
    output = session.output
    with doing(output, f"Reading the history of agent {session.agent_id}"):
        events = await session.verifier.history(session.agent_id)
    output.result(
        to_builtins(History(session.agent_id, events)), rows=to_builtins(events), names=[session.agent_id]
    )
    if not output.form.is_document:  # no script expects anything else
        output.lines(history_lines(events, output.terminal))


async def _follow(session: Session) -> None:
    """Everything that is kept, and then what happens; until the agent is deleted, or somebody has enough."""
    output = session.output
    events = await insisting(session, lambda: session.verifier.history(session.agent_id))
    for event in events:
        _show(session, event)
    if events and events[-1].kind == "deleted":
        return
    async with aclosing(news(session, events[-1].id if events else 0)) as followed:
        async for told in followed:
            match told:
                case HistoryEvent():
                    _show(session, told)
                    if told.kind == "deleted":
                        return
                case HistoryGap(after=after, first=first):
                    output.warning(
                        "what happened between events %d and %d is not kept any more", after, first
                    )
                case StreamBegun():
                    pass


def _show(session: Session, event: HistoryEvent) -> None:
    session.output.followed(to_builtins(event), history_lines([event], session.output.terminal))
