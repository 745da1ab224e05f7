"""What happened to agents and policies: what the verifier answers to `GET /agents/{id}/history`."""

from typing import Any

import msgspec


class HistoryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event. Ids go up in the order in which events took effect; `at` is in epoch seconds.

    `actor` has subject and serial number of an administrator's certificate, null where the verifier acted by
    itself. `policy` is "runtime/NAME" or "measured_boot/NAME", null in events of agents. What `details`
    hold depends on `kind`, see docs/api.md.
    """

    id: int
    at: int
    kind: str
    agent_id: str | None
    policy: str | None
    actor: str | None
    request_id: str | None
    details: dict[str, Any]


class AgentHistory(msgspec.Struct, frozen=True):
    """Results of `GET /agents/{id}/history`; with `more`, ask again with `after` the last id."""

    events: list[HistoryEvent]
    more: bool
