"""Platform configuration registers: selections, values, extension, and the blob in which quotes carry values.

Pure. The blob is the file that `tpm2_quote -o` writes: C structures as they lie in little-endian memory. Only
its canonical form is accepted, so that one set of values has one encoding.
"""

import functools
import struct
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm

PCR_COUNT = 24
ALL_PCRS = frozenset(range(PCR_COUNT))
IMA_PCR = 10
DATA_PCR = 16  # resettable by the agent: binds its transport key to a quote
MEASURED_BOOT_PCRS = frozenset({*range(10), *range(11, 16)})

_BANKS = {int(algorithm): algorithm for algorithm in HashAlgorithm}

BITMAP_SIZE = 3  # bytes of a PCR bitmap in a TPM with 24 PCRs

# PCRs that a dynamic launch resets to zero start with all ones, so that "no launch" cannot look like one.
_DYNAMIC_LAUNCH_PCRS = frozenset(range(17, 23))

_SELECTION_SLOTS = 16  # TPM2_NUM_PCR_BANKS
_SELECTION_SLOT = struct.Struct("<HB3s2x")  # TPMS_PCR_SELECTION: hash, sizeofSelect, bitmap, filler
_SELECTIONS_SIZE = 4 + _SELECTION_SLOTS * _SELECTION_SLOT.size
_LIST_SLOTS = 8  # digests in a TPML_DIGEST
_DIGEST_SLOT = struct.Struct("<H64s")  # TPM2B_DIGEST: size, value and zeros
_LIST_SIZE = 4 + _LIST_SLOTS * _DIGEST_SLOT.size
_COUNT = struct.Struct("<I")
_HEADER_SIZE = _SELECTIONS_SIZE + _COUNT.size


class PcrSelection(msgspec.Struct, frozen=True):
    """Some PCRs of one bank. Raises ValueError for an index that is not 0 to 23."""

    bank: HashAlgorithm
    indices: frozenset[int]

    def __post_init__(self) -> None:
        if not self.indices <= ALL_PCRS:
            raise ValueError(f"PCR indices are 0 to {PCR_COUNT - 1}, not {sorted(self.indices - ALL_PCRS)}")

    @staticmethod
    def from_mask(bank: HashAlgorithm, mask: int) -> "PcrSelection":
        """The PCRs whose bits are set in `mask`, bit 0 for PCR 0. Raises ValueError above 24 bits."""
        return _selected(bank, mask)

    @property
    def mask(self) -> int:
        """The selection as a bit mask, bit 0 for PCR 0."""
        return sum(1 << index for index in self.indices)

    @property
    def bitmap(self) -> bytes:
        """The three bytes of TPMS_PCR_SELECTION: bit n % 8 of byte n // 8 is PCR n."""
        return self.mask.to_bytes(BITMAP_SIZE, "little")

    def __str__(self) -> str:
        """As tpm2-tools write it: "sha256:0,1,10"."""
        return f"{self.bank.label}:{','.join(str(index) for index in sorted(self.indices)) or 'none'}"


class PcrValues(msgspec.Struct, frozen=True):
    """Values of some PCRs of one bank. Raises ValueError for a wrong index or a value of the wrong length."""

    bank: HashAlgorithm
    values: Mapping[int, bytes]

    def __post_init__(self) -> None:
        size = self.bank.size
        if not self.values.keys() <= ALL_PCRS or not {*map(len, self.values.values())} <= {size}:
            raise ValueError(f"expected values of {size} bytes of PCRs 0 to {PCR_COUNT - 1}")

    @property
    def selection(self) -> PcrSelection:
        """Which PCRs these are."""
        return PcrSelection(self.bank, frozenset(self.values))

    def digest(self, algorithm: HashAlgorithm) -> bytes:
        """The pcrDigest of a quote: the hash of the values in ascending order of their indices."""
        return algorithm.digest(b"".join([self.values[index] for index in sorted(self.values)]))


def quoted_values(
    read: PcrValues, signed: bytes, signature_hash: HashAlgorithm, later: Iterable[bytes]
) -> PcrValues | None:
    """The values whose digest was `signed`: those that were read, or with one of the `later` of PCR 10."""
    if read.digest(signature_hash) == signed:
        return read
    before = b"".join(read.values[index] for index in sorted(read.values) if index < IMA_PCR)
    after = b"".join(read.values[index] for index in sorted(read.values) if index > IMA_PCR)
    for value in later:
        if signature_hash.digest(before + value + after) == signed:
            return PcrValues(read.bank, {**read.values, IMA_PCR: value})
    return None


def start_value(bank: HashAlgorithm, index: int) -> bytes:
    """What PCR `index` holds after a start without a dynamic launch and without StartupLocality."""
    return (b"\xff" if index in _DYNAMIC_LAUNCH_PCRS else b"\x00") * bank.size


def extend(bank: HashAlgorithm, value: bytes, digest: bytes) -> bytes:
    """The PCR's value after TPM2_PCR_Extend of `digest` onto `value`."""
    return bank.digest(value + digest)


def data_pcr_value(bank: HashAlgorithm, pubkey_pem: str) -> bytes:
    """What PCR 16 must hold to bind the transport key: reset, then extended by the hash of the PEM text.

    The text is hashed exactly as it was delivered, final newline included.
    """
    return extend(bank, start_value(bank, DATA_PCR), bank.digest(pubkey_pem.encode()))


def encode_pcr_blob(pcrs: PcrValues) -> bytes:
    """The third part of a quote: 136 + 532 * k bytes for up to 8 * k values."""
    ordered = [pcrs.values[index] for index in sorted(pcrs.values)]
    lists = [ordered[at : at + _LIST_SLOTS] for at in range(0, len(ordered), _LIST_SLOTS)]
    selections = _COUNT.pack(1) + _SELECTION_SLOT.pack(pcrs.bank, BITMAP_SIZE, pcrs.selection.bitmap)
    parts = [selections.ljust(_SELECTIONS_SIZE, b"\x00"), _COUNT.pack(len(lists))]
    for digests in lists:
        slots = b"".join(_DIGEST_SLOT.pack(len(digest), digest) for digest in digests)
        parts.append((_COUNT.pack(len(digests)) + slots).ljust(_LIST_SIZE, b"\x00"))
    return b"".join(parts)


def parse_pcr_blob(data: bytes) -> PcrValues:
    """The values in the third part of a quote; exactly one bank, at least one PCR.

    Raises MalformedEvidence. Whatever `encode_pcr_blob` would not write (a second bank, filler that is not
    zero, counts that do not fit, trailing bytes) is refused: no bit of an accepted blob is without meaning.
    """
    selection = _parse_selection(data)
    lists = -(-len(selection.indices) // _LIST_SLOTS)
    if len(data) != _HEADER_SIZE + lists * _LIST_SIZE:
        raise MalformedEvidence(
            f"PCR blob for {len(selection.indices)} PCRs has {len(data)} bytes,"
            f" expected {_HEADER_SIZE + lists * _LIST_SIZE}"
        )
    size = selection.bank.size
    values: dict[int, bytes] = {}
    parts: list[bytes] = []
    places, between = _layout(selection)
    for index, start, before in zip(sorted(selection.indices), places, between, strict=True):
        values[index] = value = data[start : start + size]
        parts += before, value
    if b"".join(parts).ljust(len(data), b"\x00") != data:
        raise MalformedEvidence(
            f"PCR blob is not the canonical encoding of {len(values)} {selection.bank.label} values"
        )
    return PcrValues(selection.bank, values)


# Every attestation of a fleet quotes one of a few selections. With the two caches the values of PCRs 0 to 10
# and 14 are read in 16 microseconds instead of 60. Peers choose what they send: hence their size.
_CACHED = 256


@functools.lru_cache(maxsize=_CACHED)
def _layout(selection: PcrSelection) -> tuple[Sequence[int], Sequence[bytes]]:
    """Where the values of a selection begin in its canonical blob, and what is before each of them.

    After the last one there are zeros.
    """
    zero = bytes(selection.bank.size)
    blob = encode_pcr_blob(PcrValues(selection.bank, dict.fromkeys(selection.indices, zero)))
    places, between, end = [], [], 0
    for position in range(len(selection.indices)):
        block, slot = divmod(position, _LIST_SLOTS)
        start = _HEADER_SIZE + block * _LIST_SIZE + 4 + slot * _DIGEST_SLOT.size + 2
        places.append(start)
        between.append(blob[end:start])
        end = start + len(zero)
    return tuple(places), tuple(between)


@functools.lru_cache(maxsize=_CACHED)
def _selected(bank: HashAlgorithm, mask: int) -> PcrSelection:
    if not 0 <= mask < 1 << PCR_COUNT:
        raise ValueError(f"a PCR mask has {PCR_COUNT} bits, not {mask:#x}")
    return PcrSelection(bank, frozenset(index for index in range(PCR_COUNT) if mask >> index & 1))


def _parse_selection(data: bytes) -> PcrSelection:
    if len(data) < _HEADER_SIZE:
        raise MalformedEvidence(f"PCR blob has {len(data)} bytes, expected at least {_HEADER_SIZE}")
    (banks,) = _COUNT.unpack_from(data)
    if banks != 1:
        raise MalformedEvidence(f"PCR blob selects from {banks} banks, expected 1")
    algorithm, size, bitmap = _SELECTION_SLOT.unpack_from(data, 4)
    if size != BITMAP_SIZE:
        raise MalformedEvidence(f"PCR bitmap in the blob has {size} bytes, expected {BITMAP_SIZE}")
    selection = PcrSelection.from_mask(parse_bank(algorithm), int.from_bytes(bitmap, "little"))
    if not selection.indices:
        raise MalformedEvidence("PCR blob selects no PCR")
    return selection


def parse_bank(algorithm: int) -> HashAlgorithm:
    """The hash with TPM number `algorithm`. Raises MalformedEvidence."""
    bank = _BANKS.get(algorithm)
    if bank is None:
        raise MalformedEvidence(f"{algorithm:#06x} is not a known hash algorithm")
    return bank
