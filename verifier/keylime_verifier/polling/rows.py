"""Rows of the tables `agents` and `progress`, and the typed records that they stand for together.

Pure: columns by their names on one side, records on the other; `store` reads and writes them.
"""

import json
from collections.abc import Collection
from operator import attrgetter
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from keylime.appraisal.checkpoint import BootSession, Checkpoint, decode_checkpoint, encode_checkpoint
from keylime.errors import KeylimeError
from keylime.identifiers import parse_agent_id
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.messages.verifier import FindingSummary, OperationalState
from keylime_verifier.agents.policy_parts import decode_parts, encode_parts
from keylime_verifier.agents.records import AgentRecord, Enrolment, Progress, PushState
from keylime_verifier.agents.shards import ShardClaim, VerifierId, shard_of


class Row(Protocol):
    """A row, by the names of its columns."""

    def __getitem__(self, column: str, /) -> Any: ...


class UnreadableRecord(KeylimeError):
    """A row that we did not write, or that got damaged; names the agent."""


def enrolment_columns(enrolment: Enrolment) -> dict[str, Any]:
    """The columns that an operator's request decides."""
    return {
        "agent_id": enrolment.agent_id,
        "shard": shard_of(enrolment.agent_id),
        "ip": enrolment.ip,
        "port": enrolment.port,
        "mtls_cert": enrolment.mtls_cert,
        "ak_tpm": enrolment.ak_tpm,
        "verifier_id": enrolment.verifier_id,
        "verifier_ip": enrolment.verifier_ip,
        "verifier_port": enrolment.verifier_port,
        "meta_data": enrolment.meta_data,
        "tpm_policy": enrolment.tpm_policy,
        "runtime_policy": enrolment.runtime_policy,
        "runtime_parts": encode_parts(enrolment.runtime_parts),
        "measured_boot_policy": enrolment.measured_boot_policy,
        "ima_sign_verification_keys": enrolment.ima_sign_verification_keys,
        "accept_tpm_hash_algs": json.dumps(enrolment.accept_tpm_hash_algs),
        "accept_tpm_encryption_algs": json.dumps(enrolment.accept_tpm_encryption_algs),
        "accept_tpm_signing_algs": json.dumps(enrolment.accept_tpm_signing_algs),
        "is_pushing": enrolment.is_pushing,
    }


COUNTERS = ("attestation_count", "last_received_quote", "last_successful_attestation")
"""The columns of `progress` that count and show, and decide nothing."""


def position_columns(progress: Progress) -> dict[str, Any]:
    """The columns of `progress` that a pass changes: counters, times, and where the checkpoint stands."""
    boot, ima = progress.checkpoint.boot, progress.checkpoint.ima
    return {
        "attestation_count": progress.attestation_count,
        "last_received_quote": progress.last_received_quote,
        "last_successful_attestation": progress.last_successful_attestation,
        "tpm_clock": None if boot is None else boot.clock,
        "next_entry": ima.next_entry,
        "ima_pcr": ima.pcr,
        "matched": ima.matched,
        "length": ima.length,
        "incomplete_rounds": progress.checkpoint.incomplete_rounds,
    }


# What moves from pass to pass, and where it begins.
_MOVES = {"incomplete_rounds": 0}
_MOVES_IN_BOOT = {"clock": 0}
_MOVES_IN_LIST = {"next_entry": 0, "pcr": None, "matched": 0, "length": 0}


def lasting(checkpoint: Checkpoint) -> Checkpoint:
    """What of a checkpoint stays from pass to pass: the boot, keys and devices, who judged it by what."""
    boot = checkpoint.boot
    return replace(
        checkpoint,
        boot=None if boot is None else replace(boot, **_MOVES_IN_BOOT),
        ima=replace(checkpoint.ima, **_MOVES_IN_LIST),
        **_MOVES,
    )


def has_learned(before: Checkpoint, after: Checkpoint) -> bool:
    """Whether what lasts differs, found out without making either."""
    return _what_stays(before) != _what_stays(after)


def _what_stays(checkpoint: Checkpoint) -> tuple[object, ...]:
    boot = checkpoint.boot
    return None if boot is None else _OF_BOOT(boot), _OF_LIST(checkpoint.ima), _OF_CHECKPOINT(checkpoint)


def _all_but(kind: type[msgspec.Struct], moves: Collection[str]) -> "attrgetter[tuple[object, ...]]":
    return attrgetter(*(name for name in kind.__struct_fields__ if name not in moves))


_OF_BOOT = _all_but(BootSession, _MOVES_IN_BOOT)
_OF_LIST = _all_but(ImaCheckpoint, _MOVES_IN_LIST)
_OF_CHECKPOINT = _all_but(Checkpoint, {*_MOVES, "boot", "ima"})


def _standing_at(checkpoint: Checkpoint, row: Row) -> Checkpoint:
    """A stored checkpoint where `row` of `progress` says that it stands."""
    if row["next_entry"] is None:
        return checkpoint  # of an earlier release, which wrote it whole
    boot = checkpoint.boot
    return replace(
        checkpoint,
        boot=None if boot is None else replace(boot, clock=row["tpm_clock"] or 0),
        ima=replace(
            checkpoint.ima,
            next_entry=row["next_entry"],
            pcr=row["ima_pcr"],
            matched=row["matched"],
            length=row["length"],
        ),
        incomplete_rounds=row["incomplete_rounds"],
    )


def verdict_columns(progress: Progress) -> dict[str, Any]:
    """The columns of `agents` that polling decides."""
    return {
        "operational_state": int(progress.operational_state),
        "is_polled": progress.is_polled,
        "supported_version": progress.supported_version,
        "severity_level": progress.severity_level,
        "last_event_id": progress.last_event_id,
        "last_findings": msgspec.json.encode(progress.last_findings).decode()
        if progress.last_findings
        else None,
        "unreachable_since": progress.unreachable_since,
        "hash_alg": progress.hash_alg,
        "enc_alg": progress.enc_alg,
        "sign_alg": progress.sign_alg,
        "v_delivered_to": progress.v_delivered_to,
        "checkpoint": encode_checkpoint(lasting(progress.checkpoint)),
    }


_NOT_OF_A_REJECTION = ("supported_version", "hash_alg", "enc_alg", "sign_alg", "v_delivered_to")


def rejection_columns(progress: Progress) -> dict[str, Any]:
    """Those of them that a rejection decides, without what others may have learned since."""
    columns = verdict_columns(progress)
    return {name: value for name, value in columns.items() if name not in _NOT_OF_A_REJECTION}


def record_of(row: Row) -> AgentRecord:
    """The record in `row`. Raises UnreadableRecord."""
    try:
        return _parse_row(row)
    except (ValueError, TypeError, AttributeError, msgspec.DecodeError, KeylimeError) as error:
        raise UnreadableRecord(f"the record of agent {row['agent_id']!r} cannot be read: {error}") from error


def _parse_row(row: Row) -> AgentRecord:
    enrolment = Enrolment(
        agent_id=parse_agent_id(row["agent_id"]),
        ip=row["ip"],
        port=row["port"],
        mtls_cert=row["mtls_cert"],
        ak_tpm=row["ak_tpm"],
        verifier_id=VerifierId(row["verifier_id"]),
        verifier_ip=row["verifier_ip"],
        verifier_port=row["verifier_port"],
        has_v=row["v"] is not None,
        meta_data=row["meta_data"],
        tpm_policy=row["tpm_policy"],
        runtime_policy=row["runtime_policy"],
        measured_boot_policy=row["measured_boot_policy"],
        ima_sign_verification_keys=row["ima_sign_verification_keys"],
        accept_tpm_hash_algs=tuple(json.loads(row["accept_tpm_hash_algs"])),
        accept_tpm_encryption_algs=tuple(json.loads(row["accept_tpm_encryption_algs"])),
        accept_tpm_signing_algs=tuple(json.loads(row["accept_tpm_signing_algs"])),
        runtime_parts=decode_parts(row["runtime_parts"]),
        is_pushing=row["is_pushing"],
    )
    progress = Progress(
        operational_state=OperationalState(row["operational_state"]),
        is_polled=row["is_polled"],
        supported_version=row["supported_version"],
        severity_level=row["severity_level"],
        last_event_id=row["last_event_id"],
        last_findings=_findings_of(row["last_findings"]),
        attestation_count=row["attestation_count"],
        last_received_quote=row["last_received_quote"],
        last_successful_attestation=row["last_successful_attestation"],
        unreachable_since=row["unreachable_since"],
        hash_alg=row["hash_alg"],
        enc_alg=row["enc_alg"],
        sign_alg=row["sign_alg"],
        v_delivered_to=row["v_delivered_to"],
        checkpoint=_standing_at(decode_checkpoint(row["checkpoint"]), row),
    )
    claim = ShardClaim() if row["epoch"] is None else ShardClaim(row["owner"], row["epoch"])
    push = PushState(row["judged"], row["deadline"]) if enrolment.is_pushing else None
    return AgentRecord(row["incarnation"], enrolment, progress, claim, row["recalls"], push)


def _findings_of(text: str | None) -> tuple[FindingSummary, ...]:
    return tuple(msgspec.json.decode(text, type=list[FindingSummary])) if text else ()
