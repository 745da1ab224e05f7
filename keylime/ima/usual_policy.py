"""Documents of runtime policies that have what usual ones have and nothing else, read by their types.

What they are read for is time: of a hundred thousand names none is looked at by itself. Whatever else there
is to be read, or to be told of what is wrong with it, `load_document` reads.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

# Nothing here has a type that goes on within itself: a text can not be deeper than they are.


class _Meta(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    generator: int
    timestamp: str | UnsetType = UNSET


class _Ima(msgspec.Struct, forbid_unknown_fields=True):
    ignored_keyrings: list[str]
    log_hash_alg: str
    dm_policy: None


_Digests = dict[str, tuple[str, ...]]  # lists would have the collector look at each of them again and again


class _Policy(msgspec.Struct, forbid_unknown_fields=True):
    meta: _Meta
    release: int
    digests: _Digests
    excludes: list[str]
    keyrings: _Digests
    ima: _Ima
    ima_buf: _Digests = msgspec.field(name="ima-buf")
    verification_keys: str = msgspec.field(name="verification-keys")


def load_usual_policy(encoded: bytes) -> dict[str, Any] | None:
    """What `load_document` would return, but with tuples of digests for lists; None for what it must look at.

    That is everything that it would refuse, and some of what it would not.
    """
    try:
        policy = msgspec.json.decode(encoded, type=_Policy)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    meta = msgspec.to_builtins(policy.meta)
    ima = msgspec.to_builtins(policy.ima)
    maps = {"digests": policy.digests, "keyrings": policy.keyrings, "ima-buf": policy.ima_buf}
    others = {
        "meta": meta,
        "release": policy.release,
        "excludes": policy.excludes,
        "ima": ima,
        "verification-keys": policy.verification_keys,
    }
    # Of a key that is given twice, one is missing here.
    found = _strings(others) + sum(map(_strings_of_digests, maps.values())) + len(maps)
    return {**others, **maps} if found == _strings_in(encoded) else None


def _strings(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_strings, value.values()))
    if isinstance(value, list):
        return sum(map(_strings, value))
    return isinstance(value, str)


def _strings_of_digests(digests: Mapping[str, tuple[str, ...]]) -> int:
    return len(digests) + sum(map(len, digests.values()))


def _strings_in(encoded: bytes) -> int:
    """How many there are in valid JSON, keys included."""
    quotes = encoded.count(b'"')
    if b"\\" in encoded:  # from the left: of a run of backslashes the last one may stand before a quote
        quotes -= encoded.replace(b"\\\\", b"").count(b'\\"')
    return quotes // 2
