"""`history`: what happened to an agent, who did it, and what was found."""

from msgspec import to_builtins

from keylime_tenant.doing import doing
from keylime_tenant.history import history_lines
from keylime_tenant.json_documents import History
from keylime_tenant.session import Session


async def history(session: Session) -> None:
    """Everything that the verifier has kept about one agent, also after its deletion."""
    if session.arguments.follow:
        from keylime_tenant.commands.follow import follow_history

        await follow_history(session)
        return
    output = session.output
    with doing(output, f"Reading the history of agent {session.agent_id}"):
        events = await session.verifier.history(session.agent_id)
    output.result(
        to_builtins(History(session.agent_id, events)), rows=to_builtins(events), names=[session.agent_id]
    )
    if not output.form.is_document:  # no script expects anything else
        output.lines(history_lines(events, output.terminal))
