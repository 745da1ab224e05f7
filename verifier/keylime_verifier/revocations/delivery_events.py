"""What the history is told of attempts to deliver revocations. Pure.

Told is what came to an end, and of what goes on its first failure: whoever is silent for a week is told of
twice. What ends together is told together, so that a fleet that falls at once has an event for each batch,
and not for each pair of machines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keylime.identifiers import AgentId
from keylime.revocation.message import kind_in
from keylime_verifier.agents.deliveries import DELIVERED, FAILED, PENDING, WRONG_KEY, DeliveryState
from keylime_verifier.agents.events import EventKind, Occurrence
from keylime_verifier.agents.records import DeliveryAttempt

MOST_EVENTS = 20
"""Of one batch; of more revocations there is one event for each channel and outcome."""
MOST_NAMES = 20

_WORDS = {DELIVERED: "delivered", FAILED: "given_up", PENDING: "failing", WRONG_KEY: "wrong_key"}


@dataclass(frozen=True, slots=True)
class _Group:
    """Attempts that are told together: of one revocation, or of many."""

    channel: str
    state: DeliveryState
    attempts: Sequence[DeliveryAttempt]


def delivery_events(attempts: Sequence[DeliveryAttempt], token: str) -> list[Occurrence]:
    """The events of attempts that are written down together; `token` names the batch, in 30 characters."""
    told = [attempt for attempt in attempts if _is_told(attempt)]
    found: dict[tuple[str, ...], list[DeliveryAttempt]] = {}
    for attempt in told:
        found.setdefault((*_kind(attempt), attempt.delivery.revocation.revocation_id), []).append(attempt)
    if len(found) > MOST_EVENTS:
        found.clear()
        for attempt in told:
            found.setdefault(_kind(attempt), []).append(attempt)
    groups = [_Group(key[0], DeliveryState(key[1]), group) for key, group in found.items()]
    return [_event(group, f"{token}{number:02d}") for number, group in enumerate(groups)]


def _is_told(attempt: DeliveryAttempt) -> bool:
    is_first = attempt.delivery.attempts == 1
    return attempt.state in (DELIVERED, FAILED) or (attempt.state in (PENDING, WRONG_KEY) and is_first)


def _kind(attempt: DeliveryAttempt) -> tuple[str, str]:
    return attempt.delivery.channel.value, attempt.state.value


def _event(group: _Group, token: str) -> Occurrence:
    revocations = list(dict.fromkeys(attempt.delivery.revocation.revocation_id for attempt in group.attempts))
    revoked = {attempt.delivery.revocation.agent_id for attempt in group.attempts}
    targets = list(dict.fromkeys(attempt.delivery.target for attempt in group.attempts))
    details: dict[str, Any] = {
        "outcome": _WORDS[group.state],
        "channel": group.channel,
        "count": len(group.attempts),
        "targets": targets[:MOST_NAMES],
        "targets_left_off": len(targets[MOST_NAMES:]),
        "revocations": revocations[:MOST_NAMES],
        "messages": sorted({kind_in(attempt.delivery.revocation.message) for attempt in group.attempts}),
        "revocations_left_off": len(revocations[MOST_NAMES:]),
    }
    if group.attempts[-1].error is not None:
        details["error"] = group.attempts[-1].error
    about = AgentId(revoked.pop()) if len(revocations) == 1 else None
    return Occurrence(token=token, kind=EventKind.DELIVERY, agent_id=about, details=details)
