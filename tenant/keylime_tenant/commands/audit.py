"""`audit`: who did what, what was refused to whom, and what the verifiers did by themselves."""

from msgspec import to_builtins

from keylime_tenant.doing import doing
from keylime_tenant.history import audit_lines
from keylime_tenant.json_documents import Audit
from keylime_tenant.session import Session


async def audit(session: Session) -> None:
    """Everything that the verifiers of a database have kept since a time, oldest first."""
    output = session.output
    with doing(output, "Reading what was done"):
        events = await session.verifier.audit(session.arguments.since)
    rows = to_builtins(events)
    output.result(to_builtins(Audit(events)), rows=rows, names=[str(event.id) for event in events])
    if not output.form.is_document:  # no script expects anything else
        output.lines(audit_lines(events, output.terminal))
