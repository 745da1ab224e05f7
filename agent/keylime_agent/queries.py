"""The parameters of challenges, as they stand in a request's address."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from keylime.http.exchange import HttpError

MAX_NONCE = 64
_ALPHANUMERIC = re.compile(r"[A-Za-z0-9]+")
_MASK = re.compile(r"(0[xX])?([0-9a-fA-F]{1,8})")


@dataclass(frozen=True, slots=True)
class IntegrityQuery:
    """The parameters of an integrity challenge, checked."""

    nonce: bytes
    mask: int
    with_pubkey: bool
    ima_entry: int


def parse_identity_query(query: Mapping[str, str]) -> bytes:
    """The nonce of an identity challenge. Raises HttpError 400."""
    return _nonce(query, "Parameters")


def parse_integrity_query(query: Mapping[str, str]) -> IntegrityQuery:
    """The parameters of an integrity challenge (docs/reference/rest-api.md, 3.3). Raises HttpError 400."""
    nonce = _nonce(query, "nonce")
    mask = _required(query, "mask")
    if not _ALPHANUMERIC.fullmatch(mask):
        raise HttpError(400, f"mask should be strictly alphanumeric: {mask}")
    digits = _MASK.fullmatch(mask)
    if digits is None:
        raise HttpError(400, f"mask should be a hex encoded 32-bit integer: {mask}")
    partial = query.get("partial")
    if partial not in ("0", "1"):
        raise HttpError(400, "uri must contain key 'partial' and value '0' or '1'")
    entry = query.get("ima_ml_entry", "0")
    known = int(entry) if entry.isascii() and entry.isdigit() and len(entry) <= 15 else 0
    return IntegrityQuery(nonce, int(digits[2], 16), partial == "0", known)


def parse_challenge(query: Mapping[str, str]) -> str:
    """The challenge of /keys/verify. Raises HttpError 400."""
    challenge = query.get("challenge", "")
    if not challenge:
        raise HttpError(400, "No challenge provided.")
    if not _ALPHANUMERIC.fullmatch(challenge):
        raise HttpError(400, f"Parameters should be strictly alphanumeric: {challenge}")
    return challenge


def _nonce(query: Mapping[str, str], name: str) -> bytes:
    nonce = _required(query, "nonce")
    if not _ALPHANUMERIC.fullmatch(nonce):
        raise HttpError(400, f"{name} should be strictly alphanumeric: {nonce}")
    if len(nonce) > MAX_NONCE:
        raise HttpError(400, f"Nonce is too long (max size {MAX_NONCE}): {nonce}")
    return nonce.encode()


def _required(query: Mapping[str, str], name: str) -> str:
    value = query.get(name)
    if value is None:
        raise HttpError(400, f"Query deserialize error: missing field `{name}`")
    return value
