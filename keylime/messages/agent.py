"""Bodies of the agent's API (2.x)."""

import msgspec

from keylime.errors import MalformedMessage
from keylime.messages.envelope import parse_body


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
    os_measurement_list: str | None = None  # base64 of systemd's log; an extension that others ignore


# Of the quote and each field beside it but the logs: some kilobytes, where real ones have less than one.
MAX_FIELD = 64 << 10
MAX_BOOT_LOG = 6 << 20  # in base64, of which real ones have some ten kilobytes
MAX_OS_LOG = 3 << 19  # the same
_MOST = {"mb_measurement_list": MAX_BOOT_LOG, "os_measurement_list": MAX_OS_LOG}


class _RawQuoteReply(msgspec.Struct, frozen=True, kw_only=True):
    """The same fields, none of them looked at yet."""

    quote: msgspec.Raw
    hash_alg: msgspec.Raw
    enc_alg: msgspec.Raw
    sign_alg: msgspec.Raw
    pubkey: msgspec.Raw = msgspec.Raw(b"null")
    boottime: msgspec.Raw = msgspec.Raw(b"0")
    ima_measurement_list: msgspec.Raw = msgspec.Raw(b"null")
    ima_measurement_list_entry: msgspec.Raw = msgspec.Raw(b"0")
    mb_measurement_list: msgspec.Raw = msgspec.Raw(b"null")
    os_measurement_list: msgspec.Raw = msgspec.Raw(b"null")


_LIST = "ima_measurement_list"
_QUOTATION_MARK = ord('"')
_FIELDS = tuple(
    (name, b',"%s":' % name.encode(), _MOST.get(name, MAX_FIELD)) for name in _RawQuoteReply.__struct_fields__
)
_FIELDS_BESIDE_LIST = tuple(one for one in _FIELDS if one[0] != _LIST)


def parse_quote_reply(results: msgspec.Raw) -> tuple[QuoteReply, msgspec.Raw | None]:
    """An agent's answer without its IMA list, and that as the JSON string which it is in the answer.

    Agents may be hostile: nothing is decoded before it is known how large it is, and the IMA list, which may
    be very large, not at all. Raises MalformedMessage.
    """
    raw = parse_body(results, _RawQuoteReply)
    ima_list = raw.ima_measurement_list
    has_list = memoryview(ima_list)[0] == _QUOTATION_MARK
    small: list[bytes | memoryview] = []
    for name, key, most in _FIELDS_BESIDE_LIST if has_list else _FIELDS:
        value = memoryview(getattr(raw, name))
        if len(value) > most:
            raise MalformedMessage(f"a field of {len(value)} bytes, at most {most} are read - at `$.{name}`")
        small += key, value
    reply = parse_body(b"{%s}" % b"".join(small)[1:], QuoteReply)
    return reply, ima_list if has_list else None


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
