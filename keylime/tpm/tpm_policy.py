"""The TPM policy: values that PCRs outside the logs may have, and the mask of PCRs that are to be quoted."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from keylime.documents.strict_json import load_document
from keylime.errors import PolicyError
from keylime.findings.finding import Finding, policy_version
from keylime.tpm.pcr import DATA_PCR, IMA_PCR, PCR_COUNT

_MAX_VALUE = 128  # hex digits: SHA-512
_OWNERS = {IMA_PCR: "IMA", DATA_PCR: "Keylime itself"}
_HINTS = {
    IMA_PCR: "PCR 10 changes with every file that is measured: a runtime policy says which ones may be",
    DATA_PCR: "PCR 16 holds the agent's payload key: add the agent again without it in its TPM policy",
}
_PCR_NUMBERS = {str(index): index for index in range(PCR_COUNT)}  # one spelling each


@dataclass(frozen=True, slots=True)
class TpmPolicy:
    """Allowed values (lower-case hex, of any bank) by PCR; `mask` has bit n set for PCR n."""

    values: Mapping[int, frozenset[str]]
    mask: int

    @classmethod
    def from_operator(cls, text: str) -> "TpmPolicy":
        """What an operator writes: an object of PCR numbers with a hex value or a list of them.

        Raises PolicyError naming the PCR. PCR 10 is IMA's and 16 Keylime's. The mask covers what is named.
        """
        document = _load(text)
        values = _values(document)
        for index in _OWNERS:
            if index in values:
                raise _reserved(index)
        return cls(values, sum(1 << index for index in values))

    @classmethod
    def from_client(cls, text: str) -> "TpmPolicy":
        """What a verifier is asked to hold machines to, whoever asks: as `from_wire`. Raises PolicyError.

        PCR 16 must hold the agent's payload key, so that no other value of it can be demanded as well.
        """
        policy = cls.from_wire(text)
        if DATA_PCR in policy.values:
            raise _reserved(DATA_PCR)
        return policy

    @classmethod
    def from_wire(cls, text: str) -> "TpmPolicy":
        """The same object with `mask` as hex text, as it is stored. Raises PolicyError."""
        document = _load(text)
        mask = _parse_mask(document.pop("mask", "0x0"))
        return cls(_values(document), mask)

    def with_mask(self, indices: Iterable[int]) -> "TpmPolicy":
        """This policy with the PCRs `indices` in its mask as well."""
        return replace(self, mask=self.mask | sum(1 << index for index in set(indices)))

    def to_wire(self) -> str:
        """The JSON text for the verifier; the mask comes last, as hex without padding."""
        document: dict[str, object] = {
            str(index): sorted(self.values[index]) for index in sorted(self.values)
        }
        document["mask"] = hex(self.mask)
        return json.dumps(document)

    @property
    def version(self) -> str:
        """The version of the policy, as people are told it."""
        return policy_version("TPM policy", hashlib.sha256(self.to_wire().encode()).hexdigest())

    def evaluate(self, quoted: Mapping[int, bytes]) -> tuple[Finding, ...]:
        """Every finding about the `quoted` PCRs (raw values), also those that a log or a key explains."""
        findings = []
        for index in sorted(self.values.keys() & quoted.keys()):
            if quoted[index].hex() not in self.values[index]:
                findings.append(self._wrong_value(index, quoted[index].hex()))
        missing = sorted(self.values.keys() - quoted.keys())
        if missing:
            findings.append(self._missing(missing))
        return tuple(findings)

    def _wrong_value(self, index: int, observed: str) -> Finding:
        expected = tuple(sorted(self.values[index]))
        return Finding(
            f"pcr_validation.invalid_pcr_{index}",
            {"got": observed, "expected": list(expected)},
            recoverable=True,
            explanation=f"PCR {index} has a value that the TPM policy does not list.",
            observed=observed,
            expected=expected,
            policy=self.version,
            rule=f"PCR {index}",
            hint=_HINTS.get(
                index, "if the change was meant, update the agent with the new value in --tpm_policy"
            ),
        )

    def _missing(self, indices: list[int]) -> Finding:
        text = ", ".join(map(str, indices))
        return Finding(
            "pcr_validation.missing_pcrs",
            {"context": "PCRs of the TPM policy are missing in the quote", "data": indices},
            recoverable=True,
            explanation=f"The quote does not cover PCR {text}, which the TPM policy lists.",
            policy=self.version,
            rule=f"PCR {text}",
        )


def _reserved(index: int) -> PolicyError:
    return PolicyError(f"tpm_policy: PCR {index} is used by {_OWNERS[index]} and cannot be in the policy")


def _load(text: str) -> dict[str, object]:
    document = load_document(text, "tpm_policy")
    if not isinstance(document, dict):
        raise PolicyError("tpm_policy: expected an object of PCR numbers and hex values")
    return dict(document)


def _values(document: Mapping[str, object]) -> Mapping[int, frozenset[str]]:
    return MappingProxyType({_pcr_number(key): _hex_values(key, value) for key, value in document.items()})


def _pcr_number(key: str) -> int:
    index = _PCR_NUMBERS.get(key)
    if index is None:
        raise PolicyError(f"tpm_policy: {key[:40]!r} is not a PCR number from 0 to {PCR_COUNT - 1}")
    return index


def _hex_values(key: str, value: object) -> frozenset[str]:
    values = value if isinstance(value, list) else [value]
    allowed = set()
    for text in values:
        if not isinstance(text, str) or not _is_hex(text):
            raise PolicyError(f"tpm_policy: PCR {key}: {str(text)[:40]!r} is not a digest in hex")
        allowed.add(text.lower())
    return frozenset(allowed)


def _is_hex(text: str) -> bool:
    return 0 < len(text) <= _MAX_VALUE and all(digit in "0123456789abcdefABCDEF" for digit in text)


def _parse_mask(value: object) -> int:
    try:
        mask = int(value, 16) if isinstance(value, str) and value.isascii() else -1
    except ValueError:
        mask = -1
    if not 0 <= mask < 1 << PCR_COUNT:
        raise PolicyError("tpm_policy: mask is not the hex text of a set of PCRs 0 to 23")
    return mask
