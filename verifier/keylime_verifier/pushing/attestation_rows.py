"""Attestations of agents that attest by themselves, as they are stored and as they are shown. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from keylime.messages.envelope import parse_body
from keylime.messages.push_attestation import (
    AttestationAttributes,
    Evaluation,
    FailureReason,
    RequestedAttributes,
    Stage,
    SystemInfo,
)
from keylime.messages.push_document import format_time
from keylime.messages.push_evidence import (
    IMA_LOG,
    LogData,
    LogRequest,
    QuoteRequest,
    Received,
    ReceivedLog,
    ReceivedQuote,
    received_items,
)
from keylime_verifier.agents.pushing import told_time

AWAITING: Stage = "awaiting_evidence"
EVALUATING: Stage = "evaluating_evidence"
COMPLETE: Stage = "verification_complete"

MAX_ITEMS_SIZE = 60_000
"""Bytes of the items of an attestation: what a text column holds on every database."""


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """One attestation. Times are epoch seconds; `generation` is the agent's when it was negotiated."""

    agent_id: str
    number: int
    generation: str
    stage: Stage = AWAITING
    evaluation: Evaluation = "pending"
    failure_reason: FailureReason | None = None
    boot_time: float
    received_at: float
    expires_at: float | None  # None when nothing was asked for
    evidence_at: float | None = None
    completed_at: float | None = None
    is_kept: bool = False
    items: tuple[Received, ...]

    @property
    def columns(self) -> dict[str, Any]:
        """What is stored."""
        return {
            "agent_id": self.agent_id,
            "number": self.number,
            "generation": self.generation,
            "stage": self.stage,
            "evaluation": self.evaluation,
            "failure_reason": self.failure_reason,
            "boot_time": self.boot_time,
            "received_at": self.received_at,
            "expires_at": self.expires_at,
            "evidence_at": self.evidence_at,
            "completed_at": self.completed_at,
            "is_kept": self.is_kept,
            "items": encode_items(self.items),
        }


def encode_items(items: Sequence[Received]) -> str:
    """Items as they are stored: logs, which may be long, are told of by the number of their entries."""
    return msgspec.json.encode([_without_log(item) for item in items]).decode()


def decode_items(text: str) -> tuple[Received, ...]:
    """Items that were stored."""
    return tuple(received_items(parse_body(text.encode(), list[msgspec.Raw])))


def _without_log(item: Received) -> Received:
    if isinstance(item, ReceivedLog) and isinstance(item.data, LogData) and item.evidence_type != IMA_LOG:
        return replace(item, data=LogData(entry_count=item.capabilities.entry_count))
    return item


def attestation_of(row: Any) -> Attestation:
    """The attestation in a row."""
    return Attestation(
        agent_id=row.agent_id,
        number=row.number,
        generation=row.generation,
        stage=row.stage,
        evaluation=row.evaluation,
        failure_reason=row.failure_reason,
        boot_time=row.boot_time,
        received_at=row.received_at,
        expires_at=row.expires_at,
        evidence_at=row.evidence_at,
        completed_at=row.completed_at,
        is_kept=row.is_kept,
        items=decode_items(row.items),
    )


def requested(attestation: Attestation) -> RequestedAttributes:
    """What an agent is asked for."""
    return RequestedAttributes(
        evidence_requested=[
            QuoteRequest(chosen_parameters=item.chosen_parameters)
            if isinstance(item, ReceivedQuote)
            else LogRequest(evidence_type=item.evidence_type, chosen_parameters=item.chosen_parameters)
            for item in attestation.items
        ],
        system_info=SystemInfo(_time(attestation.boot_time)),
        capabilities_received_at=_time(attestation.received_at),
        challenges_expire_at=_time_or_unset(attestation.expires_at),
    )


def shown(attestation: Attestation, *, is_receipt: bool = False) -> AttestationAttributes:
    """How an attestation stands; the receipt of evidence has no evaluation, and says that it is judged."""
    return AttestationAttributes(
        stage=EVALUATING if is_receipt else attestation.stage,
        evaluation=UNSET if is_receipt else attestation.evaluation,
        failure_reason=attestation.failure_reason or UNSET,
        evidence=attestation.items,
        system_info=SystemInfo(_time(attestation.boot_time)),
        capabilities_received_at=_time(attestation.received_at),
        challenges_expire_at=_time_or_unset(attestation.expires_at),
        evidence_received_at=_time_or_unset(attestation.evidence_at),
        verification_completed_at=UNSET if is_receipt else _time_or_unset(attestation.completed_at),
    )


def _time(seconds: float) -> str:
    return format_time(told_time(seconds))


def _time_or_unset(seconds: float | None) -> str | msgspec.UnsetType:
    return UNSET if seconds is None else _time(seconds)
