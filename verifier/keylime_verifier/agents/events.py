"""What a verifier's history tells: acts of operators, and what came of rounds beside routine. Pure.

An event is made before it is written, and has its name then: a transaction that is tried again, because its
end was lost, writes none twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from keylime.identifiers import AgentId
from keylime_verifier.agents.records import AgentRecord, Enrolment, HeldVersions, Progress

MAX_DETAILS = 60_000
"""Bytes of an event's details: what a text column holds on every database."""


class EventKind(StrEnum):
    """What happened. The words are in databases and on the wire."""

    ENROLLED = "enrolled"
    CHANGED = "changed"
    STOPPED = "stopped"
    REACTIVATED = "reactivated"
    DELETED = "deleted"
    STATE = "state"  # a verdict, or silence, that changed how an agent stands
    REBOOTED = "rebooted"
    HELD_TO = "held_to"  # the first pass under other versions of its policies
    POLICY_STORED = "policy_stored"
    POLICY_REPLACED = "policy_replaced"
    POLICY_DELETED = "policy_deleted"
    REFUSED = "refused"  # a call of an administrator
    DELIVERY = "delivery"  # of revocations: what came of it, or how it began to fail
    CERTIFICATE = "certificate"  # one that a service uses is about to end, or has ended
    TAKEN_OVER = "taken_over"  # the agents of a verifier that is not heard of any more, by another one


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: the subject and serial number of a certificate, and the id of the request."""

    certificate: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """One thing that happened. `token` names it; without an `actor` the verifier acted by itself.

    `at` is in seconds since the epoch, None for the database's time at the writing.
    """

    token: str
    kind: EventKind
    agent_id: AgentId | None = None
    policy: str | None = None  # see `policy_key`
    actor: Actor | None = None
    at: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def policy_key(kind: str, name: str) -> str:
    """What a policy is called in the history."""
    return f"{kind}/{name}"


def details_of(enrolment: Enrolment) -> dict[str, Any]:
    """What an enrolment holds an agent to, and where it is."""
    return {
        "ip": enrolment.ip,
        "port": enrolment.port,
        "runtime_policy": enrolment.runtime_policy,
        "mb_policy": enrolment.measured_boot_policy,
        **_parts(enrolment),
    }


def _parts(enrolment: Enrolment) -> dict[str, Any]:
    return {"runtime_policies": list(enrolment.runtime_parts)} if enrolment.runtime_parts else {}


def encode_details(details: Mapping[str, Any]) -> str:
    """`details` as JSON of at most `MAX_DETAILS` bytes; of too many findings the last ones are left off."""
    encoded = msgspec.json.encode(details)
    findings = details.get("findings")
    if len(encoded) <= MAX_DETAILS or not isinstance(findings, Sequence):
        return encoded.decode()
    kept = list(findings)
    while kept and len(encoded) > MAX_DETAILS:
        del kept[len(kept) // 2 :]
        left_off = details.get("findings_left_off", 0) + len(findings) - len(kept)
        encoded = msgspec.json.encode({**details, "findings": kept, "findings_left_off": left_off})
    return encoded.decode()


def has_changed(before: Progress, after: Progress) -> bool:
    """Whether an agent stands otherwise than before, whatever was counted."""
    return _standing(before) != _standing(after)


def _standing(progress: Progress) -> tuple[object, ...]:
    return (
        progress.operational_state,
        progress.is_polled,
        progress.severity_level,
        progress.last_event_id if progress.last_findings else None,
        progress.last_findings,
    )


def state_details(
    before: Progress, after: AgentRecord, held_to: HeldVersions | None, *, omitted: int = 0
) -> dict[str, Any]:
    """What changed in how an agent stands, why, and by which versions of its policies.

    `omitted` findings are in no list: there were too many.
    """
    progress = after.progress
    details: dict[str, Any] = {
        "from": before.operational_state.text,
        "to": progress.operational_state.text,
        "is_polled": progress.is_polled,
    }
    if progress.last_findings:
        details |= {"event_id": progress.last_event_id, "findings": list(progress.last_findings)}
    if omitted:
        details["findings_left_off"] = omitted
    return details | policy_details(after.enrolment, held_to)


def policy_details(enrolment: Enrolment, held_to: HeldVersions | None) -> dict[str, Any]:
    """Which versions of which policies an agent was judged by."""
    if held_to is None:
        return {}
    found: dict[str, Any] = {}
    if held_to.runtime is not None:
        found["runtime_policy"] = {
            "name": enrolment.runtime_policy,
            "sha256": held_to.runtime,
            **_parts(enrolment),
        }
    if held_to.boot is not None:
        found["mb_policy"] = {"name": enrolment.measured_boot_policy, "sha256": held_to.boot}
    return found


def rebooted(before: Progress, after: Progress) -> bool:
    """Whether the machine was started anew between two accepted rounds."""
    return after.checkpoint.reboots > before.checkpoint.reboots


def has_other_policies(before: Progress, after: Progress) -> bool:
    """Whether an accepted round was judged by another runtime policy than the one before it."""
    first, then = before.checkpoint.ima_policy, after.checkpoint.ima_policy
    return first is not None and then is not None and first != then
