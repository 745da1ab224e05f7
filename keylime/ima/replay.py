"""Adding entries up to PCR 10: what the kernel extended for each, and the value after a whole list.

Kernels hash the template data once per bank. Where a bank's hash is not built in, and in all kernels before
5.8, they extend the SHA-1 of the template data, padded with zeros to the bank's size. Violations extend all
ones.
"""

import enum
import hashlib
from collections.abc import Callable, Iterable

from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import Entry


class ExtendMode(enum.Enum):
    """How a kernel extends one bank."""

    NATIVE = "native"
    PADDED_SHA1 = "sha1-zero-padded"


def extend_value(entry: Entry, bank: HashAlgorithm, mode: ExtendMode = ExtendMode.NATIVE) -> bytes:
    """What the kernel extended into PCR 10 of `bank` for `entry`: recomputed, never taken from the list."""
    if entry.is_violation:
        return b"\xff" * bank.size
    return data_value(entry.template_data, bank, mode)


def data_value(template_data: bytes, bank: HashAlgorithm, mode: ExtendMode) -> bytes:
    """What template data that are no violation contribute to `bank`."""
    if mode is ExtendMode.PADDED_SHA1:
        return hashlib.sha1(template_data).digest().ljust(bank.size, b"\0")  # noqa: S324
    return hasher(bank)(template_data).digest()


def replay(
    entries: Iterable[Entry],
    bank: HashAlgorithm,
    start: bytes | None = None,
    mode: ExtendMode = ExtendMode.NATIVE,
) -> bytes:
    """PCR 10 of `bank` after `entries`; `start` is the value before them, None for a fresh boot."""
    value = bytes(bank.size) if start is None else start
    new_hash = hasher(bank)
    for entry in entries:
        value = new_hash(value + extend_value(entry, bank, mode)).digest()
    return value


def modes_of(bank: HashAlgorithm) -> tuple[ExtendMode, ...]:
    """The modes that are worth trying for `bank`, the likelier first."""
    return (ExtendMode.NATIVE,) if bank is HashAlgorithm.SHA1 else (ExtendMode.NATIVE, ExtendMode.PADDED_SHA1)


def hasher(algorithm: HashAlgorithm) -> "Callable[[bytes], hashlib._Hash]":
    """The fastest constructor of `algorithm` that the library has, for loops over whole lists."""
    return _CONSTRUCTORS.get(algorithm) or (lambda data: hashlib.new("sm3", data))


_CONSTRUCTORS: "dict[HashAlgorithm, Callable[[bytes], hashlib._Hash]]" = {
    HashAlgorithm.SHA1: hashlib.sha1,
    HashAlgorithm.SHA256: hashlib.sha256,
    HashAlgorithm.SHA384: hashlib.sha384,
    HashAlgorithm.SHA512: hashlib.sha512,
}
