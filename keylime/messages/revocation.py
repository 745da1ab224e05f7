"""The revocation message and its signed envelope, the same on all three channels."""

import msgspec


class RevocationMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happened to which agent, in the order of the wire. Three fields are JSON texts inside the JSON."""

    type: str  # "revocation", "comm_error" or "cleared"
    ip: str
    agent_id: str
    port: int
    tpm_policy: str
    meta_data: str
    event_time: str  # C asctime, local time
    event_id: str
    severity_label: str
    context: str
    event_timestamp: int | None = None  # epoch seconds; ours, for `event_time` names no time zone


class SignedRevocation(msgspec.Struct, frozen=True):
    """`msg` is the message's JSON text; `signature` is base64 over exactly those UTF-8 bytes."""

    msg: str
    signature: str
