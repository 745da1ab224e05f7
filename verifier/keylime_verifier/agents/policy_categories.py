"""What a policy judges. The values are in databases."""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import NewType, TypeAlias


class PolicyCategory(StrEnum):
    """Of files in memory, or of a boot."""

    RUNTIME = "runtime"
    MEASURED_BOOT = "measured_boot"


RUNTIME, MEASURED_BOOT = PolicyCategory

PolicyKey = tuple[PolicyCategory, str]
"""Category and name, as in our table."""

TextHash = NewType("TextHash", str)
"""The hex SHA-256 of a policy's text as it is stored, which names this version of it.

What the text means has another one, `PolicyHash`: however it is spelled.
"""

PolicyHashes: TypeAlias = Mapping[tuple[str, str], TextHash]
"""The hashes of current texts, by kind and name."""


def hash_of_text(text: str) -> TextHash:
    """What the text of a policy is stored under."""
    return TextHash(hashlib.sha256(text.encode()).hexdigest())
