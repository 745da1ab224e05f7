"""Attestations of the push model: negotiation, evidence, and how a verifier shows them."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from keylime.errors import MalformedMessage
from keylime.messages.envelope import parse_body
from keylime.messages.push_document import API_VERSION, Document, JsonApi, Links, Resource, parse_answer
from keylime.messages.push_evidence import (
    Asked,
    Collected,
    Offer,
    Received,
    asked_items,
    received_items,
)

RESOURCE_TYPE = "attestation"
ERROR_TYPE = "error"
"""What an agent sends that could collect nothing."""

Stage = Literal["awaiting_evidence", "evaluating_evidence", "verification_complete"]
Evaluation = Literal["pending", "pass", "fail"]
FailureReason = Literal["broken_evidence_chain", "policy_violation"]


class SystemInfo(msgspec.Struct, frozen=True):
    """When the machine was started, by its own clock: ISO 8601."""

    boot_time: str


class NegotiationAttributes(msgspec.Struct, frozen=True):
    """What an agent can show."""

    evidence_supported: Sequence[Offer]
    system_info: SystemInfo


class RequestedAttributes(msgspec.Struct, frozen=True, kw_only=True):
    """What the verifier asks for; times are ISO 8601."""

    stage: Stage = "awaiting_evidence"
    evidence_requested: Sequence[Asked]
    system_info: SystemInfo
    capabilities_received_at: str
    challenges_expire_at: str | msgspec.UnsetType = msgspec.UNSET


class CollectedAttributes(msgspec.Struct, frozen=True):
    """What an agent has collected."""

    evidence_collected: Sequence[Collected]


class AttestationAttributes(msgspec.Struct, frozen=True, kw_only=True):
    """An attestation as the verifier shows it; the answer to evidence has no `evaluation`."""

    stage: Stage
    evaluation: Evaluation | msgspec.UnsetType = msgspec.UNSET
    failure_reason: FailureReason | msgspec.UnsetType = msgspec.UNSET
    evidence: Sequence[Received]
    system_info: SystemInfo
    capabilities_received_at: str
    challenges_expire_at: str | msgspec.UnsetType = msgspec.UNSET
    evidence_received_at: str | msgspec.UnsetType = msgspec.UNSET
    verification_completed_at: str | msgspec.UnsetType = msgspec.UNSET


class Pace(msgspec.Struct, frozen=True):
    """When the verifier expects to hear of the agent again."""

    seconds_to_next_attestation: int


class _Negotiated(msgspec.Struct, frozen=True):
    stage: str
    evidence_requested: list[msgspec.Raw]
    system_info: SystemInfo | None = None
    capabilities_received_at: str = ""
    challenges_expire_at: str | msgspec.UnsetType = msgspec.UNSET


class _Accepted(msgspec.Struct, frozen=True):
    stage: str
    evidence: list[msgspec.Raw] = []


class _AcceptedMeta(msgspec.Struct, frozen=True):
    seconds_to_next_attestation: int | None = None


def collection_path(agent_id: str) -> str:
    """Where an agent negotiates."""
    return f"/v{API_VERSION}/agents/{agent_id}/attestations"


def attestation_path(agent_id: str, number: int) -> str:
    """Where the evidence of one attestation goes."""
    return f"{collection_path(agent_id)}/{number}"


def negotiation_document(offers: Sequence[Offer], boot_time: str) -> Document:
    """An agent's offer."""
    attributes = NegotiationAttributes(offers, SystemInfo(boot_time))
    return Document(data=Resource(type=RESOURCE_TYPE, attributes=attributes))


def evidence_document(collected: Sequence[Collected]) -> Document:
    """An agent's evidence, in the order in which it was asked for."""
    return Document(data=Resource(type=RESOURCE_TYPE, attributes=CollectedAttributes(collected)))


def nothing_collected() -> Document:
    """What an agent sends that could collect nothing."""
    return Document(data=Resource(type=ERROR_TYPE, attributes=CollectedAttributes([])))


def attestation_document(
    attributes: RequestedAttributes | AttestationAttributes,
    path: str,
    asked_path: str,
    pace: Pace | None = None,
) -> Document:
    """A verifier's answer about one attestation, whose place is `path`, to a request for `asked_path`."""
    return Document(
        data=Resource(type=RESOURCE_TYPE, attributes=attributes, links=Links(path)),
        meta=pace,
        links=Links(asked_path),
        jsonapi=JsonApi(),
    )


def attestations_document(
    attestations: Sequence[tuple[str, AttestationAttributes]], asked_path: str
) -> Document:
    """A verifier's answer about several, each with its place."""
    return Document(
        data=[
            Resource(type=RESOURCE_TYPE, attributes=attributes, links=Links(path))
            for path, attributes in attestations
        ],
        links=Links(asked_path),
        jsonapi=JsonApi(),
    )


def parse_requested(body: bytes) -> list[Asked]:
    """What a verifier asks an agent for. Raises MalformedMessage."""
    _, attributes, _ = parse_answer(body, _Negotiated)
    return asked_items(attributes.evidence_requested)


def parse_pace(body: bytes) -> int | None:
    """The seconds until the next attestation in a verifier's answer to evidence; None when it does not say.

    Raises MalformedMessage for an answer that is none, and for a number that is negative.
    """
    _, _, meta = parse_answer(body, _Accepted)
    seconds = parse_body(meta, _AcceptedMeta).seconds_to_next_attestation
    if seconds is not None and seconds < 0:
        raise MalformedMessage("a time that is negative - at `$.meta.seconds_to_next_attestation`")
    return seconds


def parse_shown(body: bytes) -> list[Received]:
    """The evidence in a verifier's answer about one attestation. Raises MalformedMessage."""
    _, attributes, _ = parse_answer(body, _Accepted)
    return received_items(attributes.evidence)
