"""The revocation message: built by the verifier, written for the wire, handed to actions at the agent."""

import hashlib
import json
import time
from datetime import datetime
from enum import StrEnum

import msgspec

from keylime.errors import MalformedMessage
from keylime.findings.finding import Finding
from keylime.messages.revocation import RevocationMessage, SignedRevocation


class RevocationKind(StrEnum):
    """Why a message is sent; the value is its `type`."""

    REVOCATION = "revocation"
    COMM_ERROR = "comm_error"
    CLEARED = "cleared"  # what was said about the agent is over: it is trusted again


def _beginning(kind: RevocationKind) -> str:
    return f'{{"type": "{kind}"'


BEGINNING_OF_CLEARED = _beginning(RevocationKind.CLEARED)
"""Where a message that an agent is trusted again begins, as `encode_message` writes it."""


def kind_in(text: str) -> RevocationKind:
    """The kind of a message that `encode_message` has written; a revocation when it is of no other."""
    for kind in RevocationKind:
        if text.startswith(_beginning(kind)):
            return kind
    return RevocationKind.REVOCATION


class _Typed(msgspec.Struct, frozen=True):
    type: str = ""


def is_cleared(text: str | bytes) -> bool:
    """Whether a message, as JSON text, says that an agent is trusted again."""
    try:
        return msgspec.json.decode(text, type=_Typed).type == RevocationKind.CLEARED
    except (msgspec.DecodeError, UnicodeEncodeError):
        return False


def build_revocation(
    kind: RevocationKind,
    *,
    agent_id: str,
    ip: str,
    port: int,
    tpm_policy: str,
    meta_data: str,
    finding: Finding,
    severity_label: str,
    when: datetime,
    timestamp: int | None = None,
) -> RevocationMessage:
    """The message about `finding`; `tpm_policy` and `meta_data` are JSON texts, `when` is local time."""
    return RevocationMessage(
        type=kind.value,
        ip=ip,
        agent_id=agent_id,
        port=port,
        tpm_policy=tpm_policy,
        meta_data=meta_data,
        event_time=time.asctime(when.timetuple()),
        event_id=finding.event_id,
        severity_label=severity_label,
        context=finding.context_json,
        event_timestamp=timestamp,
    )


def encode_message(message: RevocationMessage) -> str:
    """The JSON text that is signed and sent: keys in the order of the wire, a blank after `,` and `:`."""
    return json.dumps(msgspec.to_builtins(message))


def compact_document(message: RevocationMessage) -> bytes:
    """The JSON that action programs get in a file: no blanks, keys in alphabetical order.

    Shell actions in the field look for texts such as `"type":"revocation"`.
    """
    return msgspec.json.encode(message, order="sorted")


class _Metadata(msgspec.Struct, frozen=True):
    cert_serial: int | None = None


def certificate_serial(meta_data: str) -> int | None:
    """The serial number of the certificate that an agent was enrolled with; None without one.

    Raises MalformedMessage when `meta_data` is something else than what a tenant gives.
    """
    try:
        return msgspec.json.decode(meta_data, type=_Metadata).cert_serial
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise MalformedMessage(f"metadata: {error}") from error


def delivery_key(signed: SignedRevocation) -> bytes:
    """Equal for two deliveries of the same message (it holds its event and time): 32 bytes."""
    return hashlib.sha256(signed.msg.encode("utf-8")).digest()
