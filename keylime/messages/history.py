"""What happened to agents and policies: as it is asked for, and as it is followed while it happens."""

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


class EventsAfter(msgspec.Struct, frozen=True):
    """Some of what happened after an id. Ids from `first` to `last` are kept, of whatever they are."""

    events: list[HistoryEvent]
    first: int
    last: int


class HistoryGap(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower cannot be told: what happened after the id `after` and before the id `first`.

    It was forgotten; or `after` is none of this history's ids, because the database was taken back.
    """

    after: int
    first: int


class AgentHistory(msgspec.Struct, frozen=True):
    """Results of `GET /agents/{id}/history`; with `more`, ask again with `after` the last id."""

    events: list[HistoryEvent]
    more: bool
