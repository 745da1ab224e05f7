"""The hash algorithms of PCR banks: TPM numbers, Keylime's names, sizes (TCG Algorithm Registry, table 3)."""

import enum
import hashlib
from collections.abc import Callable, Mapping


class HashAlgorithm(enum.IntEnum):
    """A PCR bank's hash; the value is its TPM_ALG_ID."""

    SHA1 = 0x0004
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    SM3_256 = 0x0012

    @classmethod
    def from_label(cls, label: str) -> "HashAlgorithm":
        """The algorithm named `label` ("sha256", as on the wire). Raises ValueError."""
        algorithm = _BY_LABEL.get(label)
        if algorithm is None:
            raise ValueError(f"unknown hash algorithm {label!r}")
        return algorithm

    @property
    def label(self) -> str:
        """The name on the wire and in configuration: "sha1", "sha256", "sha384", "sha512", "sm3_256"."""
        return _LABELS[self]

    @property
    def size(self) -> int:
        """Bytes in a digest."""
        return _SIZES[self]

    def digest(self, data: bytes) -> bytes:
        """The hash of `data`. Raises ValueError where the crypto library lacks it (SM3)."""
        return _HASHES[self](data).digest()


def _sm3(data: bytes) -> "hashlib._Hash":
    return hashlib.new("sm3", data)


_SIZES = {
    HashAlgorithm.SHA1: 20,
    HashAlgorithm.SHA256: 32,
    HashAlgorithm.SHA384: 48,
    HashAlgorithm.SHA512: 64,
    HashAlgorithm.SM3_256: 32,
}
_LABELS = {algorithm: algorithm.name.lower() for algorithm in HashAlgorithm}
_BY_LABEL = {label: algorithm for algorithm, label in _LABELS.items()}
# As functions, and not by name: each PCR is extended thousands of times.
_HASHES: Mapping[HashAlgorithm, Callable[[bytes], "hashlib._Hash"]] = {
    HashAlgorithm.SHA1: hashlib.sha1,
    HashAlgorithm.SHA256: hashlib.sha256,
    HashAlgorithm.SHA384: hashlib.sha384,
    HashAlgorithm.SHA512: hashlib.sha512,
    HashAlgorithm.SM3_256: _sm3,
}
