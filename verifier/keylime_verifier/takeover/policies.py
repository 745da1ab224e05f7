"""Policies of an earlier Keylime as they are kept here. Pure.

A text that can be read is kept byte for byte, a signed one in any case: its signature was verified when it
arrived. Lists from before runtime policies are converted, small slips are mended, and both are said.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from keylime.documents.dsse import is_envelope
from keylime.errors import KeylimeError, MalformedMessage, PolicyError
from keylime.ima.runtime_policy import CURRENT_VERSION, EMPTY_POLICY, GENERATOR_LEGACY
from keylime.nesting import is_too_deep
from keylime.takeover.report import Fate, Item, ItemKind
from keylime.takeover.values import NotTakenOver, Row, number_of, shown, text_of
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_verifier.api.enrolment import policy_name
from keylime_verifier.policies.demands import CompileBootPolicy
from keylime_verifier.policies.runtime import compile_stored_policy

_DIGESTS = ("digests", "keyrings", "ima-buf")
_OF_LISTS = ("allowlist", "whitelist")
_NOT_IN_PATHS = re.compile(r"[\x00-\x1f\x7f/]")
_LONGEST_NAME = 255
_COPIED = ("release", "keyrings", "ima", "ima-buf", "verification-keys")


@dataclass(frozen=True, slots=True)
class OldPolicy:
    """A policy row: what is said about it, the text to keep under which name, and why there is none.

    `text` is None for a row without content as well, which demands nothing; then `problem` is None too.
    """

    name: str
    text: str | None = None
    tpm_policy: str | None = None
    demands_ima: bool = False
    remarks: tuple[str, ...] = ()
    problem: str | None = None


def item_of(kind: ItemKind, policy: OldPolicy) -> Item:
    """What is said about a policy with a name of its own."""
    if policy.problem is not None:
        return Item(kind, policy.name, Fate.NOT_TAKEN, (policy.problem,))
    if policy.text is None:
        return Item(kind, policy.name, Fate.NOT_TAKEN, ("it has no content",))
    return Item.of(kind, policy.name, policy.remarks)


def runtime_policy(row: Row) -> OldPolicy:
    """The runtime policy in a row of `allowlists`."""

    def read(name: str) -> OldPolicy:
        text, demands_ima, remarks = convert_runtime(text_of(row, "ima_policy"))
        tpm_policy, said = _tpm_policy(row)
        return OldPolicy(name, text, tpm_policy, demands_ima, (*remarks, *said))

    return _read(row, read)


def boot_policy(row: Row, compile_policy: CompileBootPolicy) -> OldPolicy:
    """The reference state in a row of `mbpolicies`."""
    return _read(row, lambda name: OldPolicy(name, convert_boot(text_of(row, "mb_policy"), compile_policy)))


def _read(row: Row, read: Callable[[str], OldPolicy]) -> OldPolicy:
    value = row.get("name")
    name = value if isinstance(value, str) else shown(value)
    try:
        policy = read(_usable(text_of(row, "name")))
    except (KeylimeError, RecursionError) as error:
        problem = f"{error}; mend it and add it under this name, then the agents that use it"
        return OldPolicy(name, problem=problem)
    if policy.name == name:
        return policy
    said = f"its name was {shown(name)}, which no path can hold"
    return replace(policy, remarks=(said, *policy.remarks))


def _usable(name: str | None) -> str:
    """A name by which a policy can be asked for. Raises NotTakenOver."""
    if name is None:
        raise NotTakenOver("it has no name")
    try:
        policy_name(name, "name")
    except MalformedMessage:
        name = _NOT_IN_PATHS.sub("_", name)[:_LONGEST_NAME]
        return name if name.strip(".") else f"_{name}"
    return name


def convert_boot(text: str | None, compile_policy: CompileBootPolicy) -> str | None:
    """The reference state to keep, None when there is none. Raises PolicyError."""
    return text if text and text.strip() and compile_policy(text) is not None else None


def convert_runtime(text: str | None) -> tuple[str | None, bool, tuple[str, ...]]:
    """The runtime policy to keep, whether it demands anything, and what was changed; no text: None.

    Raises PolicyError.
    """
    if text is None or not text.strip():
        return None, False, ()
    if is_envelope(text):
        return text, compile_stored_policy(text).demands_ima, ()
    document = _document(text)
    if any(isinstance(document.get(name), dict) for name in _OF_LISTS):
        converted = json.dumps(_converted(document))
        mended = _mended(json.loads(converted))
        said = "it was a list from before runtime policies, and is converted"
        return mended, compile_stored_policy(mended).demands_ima, (said,)
    try:
        return text, compile_stored_policy(text).demands_ima, ()
    except PolicyError as error:
        first = error
    mended = _mended(document)
    return mended, compile_stored_policy(mended).demands_ima, (f"{first}: mended",)


def _document(text: str) -> dict[str, Any]:
    if is_too_deep(text):
        raise PolicyError("it is nested too deeply")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise PolicyError("it is not JSON") from error
    if not isinstance(document, dict):
        raise PolicyError("it is not a JSON object")
    return document


def _converted(document: Mapping[str, Any]) -> dict[str, Any]:
    """The runtime policy that a list with its exclude list stands for."""
    given = next(document[name] for name in _OF_LISTS if isinstance(document.get(name), dict))
    is_flat = not isinstance(given.get("hashes"), dict)
    policy = _empty()
    if not is_flat:
        policy.update({name: given[name] for name in _COPIED if given.get(name)})
    policy["digests"] = given if is_flat else given["hashes"]
    policy["excludes"] = document.get("exclude") or []
    policy["meta"] = {"version": CURRENT_VERSION, "generator": GENERATOR_LEGACY}
    return policy


def _mended(document: Mapping[str, Any]) -> str:
    """A policy with what was left out, and digests as they are written today."""
    policy = _empty()
    policy.update({name: value for name, value in document.items() if value is not None})
    for section in ("meta", "ima"):
        if isinstance(policy[section], dict):
            filled = {name: value for name, value in policy[section].items() if value is not None}
            policy[section] = {**_empty()[section], **filled}
    for name in _DIGESTS:
        policy[name] = _lower(policy[name])
    if isinstance(policy["verification-keys"], str):
        policy["verification-keys"] = mended_keyring(policy["verification-keys"])
    return json.dumps(policy)


def mended_keyring(text: str) -> str:
    """A keyring with ids as numbers, where they are written in hexadecimal; anything else as it is."""
    try:
        document = json.loads(text)
        if isinstance(document, str):
            document = json.loads(document)
        ids = [int(one, 16) if isinstance(one, str) else one for one in document["keyids"]]
        return text if ids == document["keyids"] else json.dumps({**document, "keyids": ids})
    except (ValueError, TypeError, KeyError, RecursionError):
        return text


def _lower(section: object) -> object:
    if not isinstance(section, dict):
        return section
    lowered = {
        path: [digest.lower() if isinstance(digest, str) else digest for digest in digests]
        if isinstance(digests, list)
        else digests
        for path, digests in section.items()
    }
    # A path without a digest allows nothing, and so does no path.
    return {path: digests for path, digests in lowered.items() if digests not in ([], None)}


def _empty() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(EMPTY_POLICY)
    return document


def _tpm_policy(row: Row) -> tuple[str | None, tuple[str, ...]]:
    """The TPM policy beside a runtime policy, which nobody is held to: only kept when it can be read."""
    try:
        text = text_of(row, "tpm_policy")
        if text is not None:
            TpmPolicy.from_wire(text)
    except KeylimeError as error:
        return None, (f"its tpm_policy is left out: {error}",)
    return text, ()


def row_id(row: Row) -> int | None:
    """What agents name a policy by."""
    try:
        return number_of(row, "id", most=2**63 - 1)
    except NotTakenOver:
        return None
