"""Which hash the digests of a new policy are made with: all sources of one policy must agree."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import BOOT_AGGREGATE, Entry

ALGORITHMS = tuple(algorithm.label for algorithm in HashAlgorithm)
DEFAULT = HashAlgorithm.SHA256

# The kernel's name for SM3 differs from that of TPM tools.
_FROM_KERNEL = {"sm3": "sm3_256", "sm3-256": "sm3_256"}


@dataclass(frozen=True, slots=True)
class AlgorithmClaim:
    """The algorithms that a source's digests may be of; two where their length does not tell."""

    source: str
    candidates: frozenset[HashAlgorithm]


def choose_algorithm(claims: Sequence[AlgorithmClaim]) -> HashAlgorithm:
    """The algorithm that all claims allow, SHA-256 without any. Raises ConfigError, naming who disagrees."""
    possible = frozenset(HashAlgorithm)
    for number, claim in enumerate(claims):
        if not possible & claim.candidates:
            before = ", ".join(earlier.source for earlier in claims[:number])
            raise ConfigError(
                f"{claim.source} has {_labels(claim.candidates)} digests, "
                f"but {before} has {_labels(possible)}; "
                "a policy that mixes them would match neither: choose sources of one algorithm"
            )
        possible &= claim.candidates
    return next(iter(possible)) if len(possible) == 1 else DEFAULT


def claim_of_option(label: str) -> AlgorithmClaim:
    """What `--algo` demands."""
    return AlgorithmClaim("--algo", frozenset({HashAlgorithm.from_label(label)}))


def claim_of_digests(source: str, digests: Mapping[str, Iterable[str]]) -> AlgorithmClaim | None:
    """What the first digest of a policy or allowlist tells. Raises ConfigError for a strange length."""
    first = next((digest for values in digests.values() for digest in values), None)
    if first is None:
        return None
    plain = first.rpartition(":")[2]
    candidates = frozenset(algorithm for algorithm in HashAlgorithm if 2 * algorithm.size == len(plain))
    if not candidates:
        raise ConfigError(f"{source}: a digest of {len(plain)} hex digits is of no known algorithm")
    return AlgorithmClaim(source, candidates)


def begins_with_boot_aggregate(entries: Sequence[Entry]) -> bool:
    """Whether a list is one from the start of a boot, not a part of one."""
    return bool(entries) and entries[0].name == BOOT_AGGREGATE and entries[0].buffer is None


def claim_of_list(source: str, entries: Sequence[Entry]) -> AlgorithmClaim | None:
    """What the boot_aggregate of an IMA list tells; nothing, where it is only part of one.

    Raises ConfigError for an algorithm without a PCR bank.
    """
    if not begins_with_boot_aggregate(entries):
        return None
    label = _FROM_KERNEL.get(entries[0].digest_algorithm, entries[0].digest_algorithm)
    try:
        algorithm = HashAlgorithm.from_label(label)
    except ValueError:
        raise ConfigError(
            f"{source}: boot_aggregate of algorithm {label!r}, which no TPM bank has: the kernel found no "
            "TPM; boot it with one, and with ima_hash= of one of its banks (sha256)"
        ) from None
    return AlgorithmClaim(source, frozenset({algorithm}))


def template_hash_of_list(source: str, entries: Sequence[Entry]) -> HashAlgorithm:
    """Which algorithm the template hashes are of, by their length.

    Raises ConfigError for a mixture, and where an entry shows them to be of another kind.
    """
    sizes = {len(entry.template_hash) for entry in entries}
    if len(sizes) != 1:
        raise ConfigError(f"{source}: its entries have template hashes of different algorithms")
    (size,) = sizes
    algorithm = next(algorithm for algorithm in HashAlgorithm if algorithm.size == size)
    first = next((entry for entry in entries if not entry.is_violation), None)
    if first is not None and (kind := _strange_hash(first, algorithm)):
        raise ConfigError(
            f"{source}: has template hashes of {kind}, which policies cannot name; "
            "give ascii_runtime_measurements, and have agents send that list"
        )
    return algorithm


def _strange_hash(entry: Entry, expected: HashAlgorithm) -> str | None:
    """What a template hash is that has the length of `expected`, and is neither of that nor unknown."""
    digest, data = entry.template_hash, entry.template_data
    if digest == expected.digest(data):
        return None
    if digest == HashAlgorithm.SHA1.digest(data).ljust(expected.size, b"\0"):
        return f"SHA-1 filled up with zeros (this kernel had no {expected.label} when it measured)"
    with contextlib.suppress(ValueError):  # not every crypto library has it
        if digest == HashAlgorithm.SM3_256.digest(data):
            return "SM3"
    return None


def _labels(algorithms: Iterable[HashAlgorithm]) -> str:
    return " or ".join(sorted(algorithm.label for algorithm in algorithms))
