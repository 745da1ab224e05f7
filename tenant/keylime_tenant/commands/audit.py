"""`audit`: who did what, what was refused to whom, and what the services did by themselves."""

import heapq
from collections.abc import Sequence

from msgspec import structs, to_builtins

from keylime.errors import KeylimeError
from keylime.messages.history import HistoryEvent
from keylime_tenant.client import Service
from keylime_tenant.doing import doing
from keylime_tenant.errors import OlderRelease
from keylime_tenant.history import audit_lines
from keylime_tenant.json_documents import Audit, AuditedEvent
from keylime_tenant.session import Session


async def audit(session: Session) -> None:
    """Everything that verifiers and registrars have kept since a time, oldest first.

    What one of them tells is shown when the other does not answer. Raises KeylimeError then.
    """
    output = session.output
    failures: list[KeylimeError] = []
    told = []
    with doing(output, "Reading what was done"):
        for service in (session.verifier, session.registrar):
            try:
                told.append(_of(service, await service.audit(session.arguments.since)))
            except OlderRelease as error:
                output.warning("%s", error)
            except KeylimeError as error:
                failures.append(error)
    if not told and failures:
        raise failures[0]
    events = [*heapq.merge(*told, key=lambda event: event.at)]
    names = [f"{event.service}/{event.id}" for event in events]
    output.result(to_builtins(Audit(events)), rows=to_builtins(events), names=names)
    if not output.form.is_document:  # no script expects anything else
        output.lines(audit_lines(events, output.terminal))
    if failures:
        raise failures[0]


def _of(service: Service, events: Sequence[HistoryEvent]) -> list[AuditedEvent]:
    return [AuditedEvent(**structs.asdict(event), service=service.name) for event in events]
