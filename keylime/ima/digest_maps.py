"""Which digests each name may have: a section of a runtime policy, read and written as a whole.

A policy has a hundred thousand names, and nearly all have bare digests. Other ones are read one by one.
"""

import itertools
import re
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from keylime.errors import PolicyError
from keylime.ima.templates import DIGEST_SIZES

MAX_DIGESTS_PER_NAME = 10_000

Allowed: TypeAlias = tuple[bytes, ...] | frozenset[bytes]
DigestMap: TypeAlias = Mapping[str, Allowed]

_DIGEST = re.compile(r"(?:([a-z0-9_-]+):)?([0-9a-f]{40,128})")
_BARE_DIGEST = re.compile(r"[0-9a-f]{40,128}")  # one of those that nearly all names have alone
_BARE_SIZES = frozenset(range(40, 129, 2))  # hex digits
_MANY = 8  # digests of one name from which on a set beats a linear search
_KINDS = {
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def read_digest_map(members: Mapping[str, Any], where: str) -> DigestMap:
    """The digests of each name in the section `where`, which has these members.

    Lists may be tuples. Raises PolicyError, which names the place.
    """
    together = _read_together(members)
    if together is not None:
        return together
    return {key: _digests(values, where, key) for key, values in members.items()}


def digest_texts(digests: DigestMap) -> dict[str, Sequence[str]]:
    """The digests of each name in hex, sorted."""
    if set(map(len, digests.values())) == {1}:
        alone = zip(map(bytes.hex, itertools.chain.from_iterable(digests.values())))
        return dict(zip(digests, alone, strict=True))
    return {name: sorted(map(bytes.hex, allowed)) for name, allowed in digests.items()}


def encode_digest_map(digests: DigestMap) -> bytes:
    """The canonical JSON of a section, names and digests sorted."""
    return msgspec.json.encode(digest_texts(digests), order="sorted")


def united(first: DigestMap, second: DigestMap) -> DigestMap:
    """What either allows."""
    merged = dict(first)
    for name, allowed in second.items():
        merged[name] = _allowed([*merged.get(name, ()), *allowed])
    return merged


def only_in(digests: DigestMap, others: DigestMap) -> dict[str, tuple[str, ...]]:
    """The hex digests, by name, that the others do not have."""
    only = {}
    for name in sorted(digests):
        missing = set(digests[name]) - set(others.get(name, ()))
        if missing:
            only[name] = tuple(sorted(digest.hex() for digest in missing))
    return only


def kind_of(value: object) -> str:
    """What JSON calls a value, with its article."""
    return _KINDS.get(type(value), "a number")


def _read_together(members: Mapping[str, Any]) -> DigestMap | None:
    """The same if all digests are bare and right; None if not, and then reading one by one says which."""
    if not members:
        return {}
    lists: Collection[Any] = members.values()
    if not set(map(type, lists)) <= {list, tuple}:
        return None
    counts = set(map(len, lists))
    if min(counts) == 0 or max(counts) > MAX_DIGESTS_PER_NAME:
        return None
    texts = list(itertools.chain.from_iterable(lists))
    if set(map(type, texts)) != {str}:
        return None
    sizes = set(map(len, texts))
    if not sizes <= _BARE_SIZES:
        return None
    joined = "".join(texts)
    try:
        raw = bytes.fromhex(joined)
    except ValueError:
        return None
    if raw.hex() != joined:  # capital letters, or blanks, which `fromhex` skips
        return None
    digests = struct.iter_unpack(f"{len(texts[0]) // 2}s", raw) if len(sizes) == 1 else _cut(raw, texts)
    if counts == {1}:
        return dict(zip(members, digests, strict=True))
    return {
        name: next(digests) if len(values) == 1 else _allowed(_next(digests, len(values)))
        for name, values in members.items()
    }


def _cut(raw: bytes, texts: Sequence[str]) -> Iterator[tuple[bytes]]:
    ends = itertools.accumulate((len(text) // 2 for text in texts), initial=0)
    return ((raw[start:end],) for start, end in itertools.pairwise(ends))


def _next(digests: Iterator[tuple[bytes]], count: int) -> list[bytes]:
    return [digest for (digest,) in itertools.islice(digests, count)]


def _digests(values: object, where: str, key: str) -> Allowed:
    if isinstance(values, list | tuple) and len(values) == 1:
        (value,) = values
        # As below in the end, for a policy with a hundred thousand of them.
        if isinstance(value, str) and _BARE_DIGEST.fullmatch(value) and len(value) % 2 == 0:
            return (bytes.fromhex(value),)
    if not isinstance(values, list | tuple) or not values:
        raise PolicyError(f"{where}[{key!r}]: expected a list of at least one digest, got {kind_of(values)}")
    if len(values) > MAX_DIGESTS_PER_NAME:
        raise PolicyError(f"{where}[{key!r}]: {len(values)} digests, at most {MAX_DIGESTS_PER_NAME}")
    return _allowed([_digest(value, where, key, index) for index, value in enumerate(values)])


def _allowed(digests: Sequence[bytes]) -> Allowed:
    if len(digests) == 1:
        return (digests[0],)
    unique = frozenset(digests)
    return unique if len(unique) > _MANY else tuple(sorted(unique))


def _digest(value: object, where: str, key: str, index: int) -> bytes:
    match = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise PolicyError(
            f"{where}[{key!r}][{index}]: {repr(value[:40]) if isinstance(value, str) else kind_of(value)} "
            "is not a digest of 40 to 128 lower-case hex digits"
        )
    try:
        digest = bytes.fromhex(match[2])
    except ValueError as error:
        raise PolicyError(f"{where}[{key!r}][{index}]: {value!r} has an odd number of hex digits") from error
    if match[1] is not None and DIGEST_SIZES.get(match[1]) != len(digest):
        raise PolicyError(f"{where}[{key!r}][{index}]: {value!r} is not a digest of {match[1]!r}")
    return digest
