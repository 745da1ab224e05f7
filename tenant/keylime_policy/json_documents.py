"""What `keylime-policy` prints with --json, as types; the published JSON Schema is made of these.

`python -m keylime_policy.json_documents` writes it.
"""

import json
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from keylime.documents.published_schema import Count, Documents, published_schema
from keylime.messages.verifier import FindingSummary

Digests = dict[str, list[str]]  # of a name, in hexadecimal digits


class ImaNumbers(msgspec.Struct, frozen=True):
    """What an IMA list shows by itself; `pcr10` is where its replay ends, by bank."""

    entries: Count
    violations: Count
    pcr10: dict[str, str]


class BootNumbers(msgspec.Struct, frozen=True):
    """What PCRs hold if the logs of the boot are true: by bank, then by PCR."""

    pcrs: dict[str, dict[str, str]]


class Appraisal(msgspec.Struct, frozen=True, kw_only=True):
    """The judgement on evidence. `reason` says why it is incomplete; null is what was not given to judge."""

    verdict: Literal["accepted", "rejected", "incomplete"]
    reason: str | None
    findings: list[FindingSummary]
    notes: list[str]
    not_checked: list[str]
    ima: ImaNumbers | None
    boot: BootNumbers | None


class PolicyMeta(msgspec.Struct, frozen=True):
    """Where a runtime policy comes from."""

    version: int
    generator: int
    timestamp: str | UnsetType = UNSET


class ImaRules(msgspec.Struct, frozen=True):
    """What of IMA is not judged by digests of files."""

    ignored_keyrings: list[str]
    log_hash_alg: str
    dm_policy: dict[str, Any] | None


class RuntimePolicyDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime policy, as a verifier takes it."""

    meta: PolicyMeta
    release: int
    digests: Digests
    excludes: list[str]
    keyrings: Digests
    ima: ImaRules
    ima_buf: Digests = msgspec.field(name="ima-buf")
    verification_keys: str = msgspec.field(name="verification-keys")


ReferenceState = dict[str, Any]
"""A reference state for measured boot, whose members are the business of the policy that reads it."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Rules that only one of two runtime policies has; kinds without any are left out."""

    digests: Digests | UnsetType = UNSET
    keyrings: Digests | UnsetType = UNSET
    ima_buf: Digests | UnsetType = msgspec.field(name="ima-buf", default=UNSET)
    excludes: list[str]


class PolicyChanges(msgspec.Struct, frozen=True):
    """Two runtime policies; `changed` names other members that differ."""

    added: Rules
    removed: Rules
    changed: list[str]


class StateLeaf(msgspec.Struct, frozen=True):
    """One value in a reference state, and where it is: members with dots between."""

    place: str
    value: str


class StateChanges(msgspec.Struct, frozen=True):
    """Two reference states; what is `changed` stands in another order."""

    removed: list[StateLeaf]
    added: list[StateLeaf]
    changed: list[StateLeaf]


class LintRemark(msgspec.Struct, frozen=True):
    """Something to think about again; `line` is null where no line can be named."""

    file: str
    line: int | None
    text: str
    remedy: str


DOCUMENTS: Documents = {
    "check": (Appraisal,),
    "show": (RuntimePolicyDocument, ReferenceState),
    "diff": (PolicyChanges, StateChanges),
    "lint": (list[LintRemark],),
}
"""The document of each command that has --json, one of these types."""


def rendered(document: Any) -> str:
    """One of the above as it is printed, with a final newline."""
    return json.dumps(msgspec.to_builtins(document), indent=2) + "\n"


def text() -> str:
    """The published file."""
    return published_schema("keylime-policy", DOCUMENTS)


if __name__ == "__main__":
    print(text(), end="")
