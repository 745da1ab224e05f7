"""Bodies of the agent's API (2.x)."""

import msgspec


class QuoteReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Results of an identity or integrity quote, checked for shape but not yet for truth."""

    quote: str
    hash_alg: str
    enc_alg: str
    sign_alg: str
    pubkey: str | None = None  # with partial=0 and in identity quotes
    boottime: int = 0  # agents of the Rust line never send it
    ima_measurement_list: str | None = None
    ima_measurement_list_entry: int = 0
    mb_measurement_list: str | None = None  # base64 of the UEFI event log


class PublicKeyReply(msgspec.Struct, frozen=True):
    """Results of `GET /keys/pubkey`: PEM SubjectPublicKeyInfo of the payload key."""

    pubkey: str


class UKeyRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`POST /keys/ukey`: U under RSA-OAEP, HMAC-SHA384 of the agent id under K, the encrypted payload."""

    encrypted_key: str
    auth_tag: str
    payload: str | None = None


class VKeyRequest(msgspec.Struct, frozen=True):
    """`POST /keys/vkey`: V under RSA-OAEP, base64."""

    encrypted_key: str


class KeyVerification(msgspec.Struct, frozen=True):
    """Results of `GET /keys/verify`: hex HMAC-SHA384 of the challenge under K."""

    hmac: str


class AgentInfo(msgspec.Struct, frozen=True):
    """Results of `GET /agent/info` (since 2.2)."""

    agent_uuid: str
    tpm_hash_alg: str
    tpm_enc_alg: str
    tpm_sign_alg: str
    ak_handle: int
