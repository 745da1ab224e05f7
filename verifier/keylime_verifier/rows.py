"""Rows of the table `agents` and the typed records that they stand for."""

import json
from typing import Any

import msgspec
from sqlalchemy import RowMapping

from keylime.appraisal.checkpoint import decode_checkpoint, encode_checkpoint
from keylime.errors import KeylimeError
from keylime.identifiers import parse_agent_id
from keylime.messages.verifier import FindingSummary, OperationalState
from keylime_verifier.ownership import Claim, shard_of
from keylime_verifier.records import AgentRecord, Enrolment, Progress


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
        "measured_boot_policy": enrolment.measured_boot_policy,
        "ima_sign_verification_keys": enrolment.ima_sign_verification_keys,
        "accept_tpm_hash_algs": json.dumps(enrolment.accept_tpm_hash_algs),
        "accept_tpm_encryption_algs": json.dumps(enrolment.accept_tpm_encryption_algs),
        "accept_tpm_signing_algs": json.dumps(enrolment.accept_tpm_signing_algs),
    }


def progress_columns(progress: Progress) -> dict[str, Any]:
    """The columns that polling decides."""
    return {
        "operational_state": int(progress.operational_state),
        "is_polled": progress.is_polled,
        "supported_version": progress.supported_version,
        "severity_level": progress.severity_level,
        "last_event_id": progress.last_event_id,
        "last_findings": msgspec.json.encode(progress.last_findings).decode()
        if progress.last_findings
        else None,
        "attestation_count": progress.attestation_count,
        "last_received_quote": progress.last_received_quote,
        "last_successful_attestation": progress.last_successful_attestation,
        "unreachable_since": progress.unreachable_since,
        "hash_alg": progress.hash_alg,
        "enc_alg": progress.enc_alg,
        "sign_alg": progress.sign_alg,
        "v_delivered_to": progress.v_delivered_to,
        "checkpoint": encode_checkpoint(progress.checkpoint),
    }


def record_of(row: RowMapping) -> AgentRecord:
    """The record in `row`. Raises UnreadableRecord."""
    try:
        return _parse_row(row)
    except (ValueError, TypeError, AttributeError, msgspec.DecodeError, KeylimeError) as error:
        raise UnreadableRecord(f"the record of agent {row['agent_id']!r} cannot be read: {error}") from error


def _parse_row(row: RowMapping) -> AgentRecord:
    enrolment = Enrolment(
        agent_id=parse_agent_id(row["agent_id"]),
        ip=row["ip"],
        port=row["port"],
        mtls_cert=row["mtls_cert"],
        ak_tpm=row["ak_tpm"],
        verifier_id=row["verifier_id"],
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
        checkpoint=decode_checkpoint(row["checkpoint"]),
    )
    claim = Claim() if row["epoch"] is None else Claim(row["owner"], row["epoch"])
    return AgentRecord(row["incarnation"], enrolment, progress, claim)


def _findings_of(text: str | None) -> tuple[FindingSummary, ...]:
    return tuple(msgspec.json.decode(text, type=list[FindingSummary])) if text else ()
