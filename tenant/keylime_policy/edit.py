"""Policies that are there already: shown, compared, united, converted, amended, looked over."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from keylime.documents.dsse import is_envelope
from keylime.documents.places import Place, line_of
from keylime.errors import ConfigError
from keylime.findings.finding import printable
from keylime.ima.allowlist import numbered_excludes
from keylime.ima.amendments import SECTIONS, amendment
from keylime.ima.digest_maps import DigestMap
from keylime.ima.runtime_policy import (
    PolicyDifference,
    compile_runtime_policy,
    diff,
    merge,
    parse_runtime_policy,
)
from keylime_policy.boot_states import is_reference_state
from keylime_policy.create_runtime import PolicyDraft, summary, verification_keys
from keylime_policy.files import read_text, write_output
from keylime_policy.json_documents import (
    LintRemark,
    PolicyChanges,
    Rules,
    RuntimePolicyDocument,
    rendered,
)
from keylime_policy.lint import Remark, lint, lint_excludes
from keylime_policy.messages import Messages
from keylime_policy.own_source import NOT_ITS_SOURCE
from keylime_policy.policies import (
    is_allowlist,
    load_any_policy,
    load_excludes,
    load_findings,
    load_policy,
)
from keylime_policy.reference_states import lint_state, show_state, show_state_difference
from keylime_policy.sources import blaming
from keylime_policy.times import local_time, timestamp_of

_SECTIONS = (("digests", "digests"), ("keyrings", "keyrings"), ("ima_buf", "ima-buf"))
_DIFFERENT = 1


def show(path: str, *, as_json: bool) -> int:
    """Prints a policy: its rows, its expressions and keys, then a line for each digest."""
    if is_reference_state(read_text("POLICY", path)):
        return show_state(path, as_json=as_json)
    loaded = load_policy("POLICY", path)
    policy = loaded.policy
    if as_json:
        sys.stdout.write(rendered(msgspec.convert(policy.to_document(), RuntimePolicyDocument)))
        return 0
    rows = [
        ("policy", policy.version.rpartition(" ")[2]),
        ("signed", "yes (by whom is not checked)" if loaded.is_signed else "no"),
        ("made", policy.meta.timestamp or "at an unknown time"),
        ("release", str(policy.release)),
        ("files", _count(policy.digests)),
        ("keyrings", _count(policy.keyrings)),
        ("ignored keyrings", ", ".join(policy.ignored_keyrings) or "none"),
        ("buffers", _count(policy.ima_buf)),
        ("template hashes", policy.log_hash_alg.label),
        ("device mapper", "none" if policy.dm_policy is None else "has rules"),
        (
            "keys that sign files",
            ", ".join(f"{k.key_id:08x}" for k in policy.verification_keys.keys) or "none",
        ),
        ("excludes", str(len(policy.excludes.sources))),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {printable(value)}" for name, value in rows]
    lines += [f"warning: {printable(text)}" for text in policy.warnings]
    for expression in policy.excludes.sources:
        lines.append(f"exclude  {printable(expression)}")
    for member, section in _SECTIONS:
        digests: DigestMap = getattr(policy, member)
        lines += [
            f"{section}  {digest.hex()}  {printable(name)}"
            for name in sorted(digests)
            for digest in sorted(digests[name])
        ]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _count(digests: DigestMap) -> str:
    total = sum(map(len, digests.values()))
    return f"{len(digests)}, {total} digests" if digests else "none"


def show_difference(old: str, new: str, *, as_json: bool) -> int:
    """Prints what `new` allows more (+) and less (-) than `old`; the status is 1 where they differ."""
    is_state = is_reference_state(read_text("OLD", old))
    before = None if is_state else load_policy("OLD", old).policy
    if is_reference_state(read_text("NEW", new)) is not is_state:
        state, policy = (old, new) if is_state else (new, old)
        raise ConfigError(
            f"{state} is a reference state for measured boot, and {policy} is none: they do not compare"
        )
    if before is None:
        return show_state_difference(old, new, as_json=as_json)
    difference = diff(before, load_policy("NEW", new).policy)
    if as_json:
        sys.stdout.write(rendered(_changes(difference)))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _difference_lines(difference)))
    return 0 if difference.is_empty else _DIFFERENT


def _changes(difference: PolicyDifference) -> PolicyChanges:
    return PolicyChanges(
        added=_rules(difference.added, difference.excludes_added),
        removed=_rules(difference.removed, difference.excludes_removed),
        changed=list(difference.changed),
    )


def _rules(by_kind: Mapping[str, Mapping[str, tuple[str, ...]]], excludes: Sequence[str]) -> Rules:
    kinds = {
        kind: {name: list(values) for name, values in digests.items()} for kind, digests in by_kind.items()
    }
    return Rules(**kinds, excludes=list(excludes))


def _difference_lines(difference: PolicyDifference) -> Iterator[str]:
    for kind, section in _SECTIONS:
        removed, added = difference.removed.get(kind, {}), difference.added.get(kind, {})
        for name in sorted({*removed, *added}):
            yield from (f"- {section}  {digest}  {printable(name)}" for digest in removed.get(name, ()))
            yield from (f"+ {section}  {digest}  {printable(name)}" for digest in added.get(name, ()))
    yield from (f"- exclude  {printable(text)}" for text in difference.excludes_removed)
    yield from (f"+ exclude  {printable(text)}" for text in difference.excludes_added)
    yield from (f"! {name} differs" for name in difference.changed)


def merge_policies(paths: Sequence[str], output: str | None, messages: Messages) -> int:
    """Writes the policy that allows what any of the given ones allows."""
    united = load_policy("POLICY", paths[0]).policy
    for path in paths[1:]:
        with blaming("POLICY", path):
            united = merge(united, load_policy("POLICY", path).policy)
    document = united.to_document()
    document["meta"]["timestamp"] = timestamp_of(local_time())
    return _write(document, output, messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What to convert, and what to add to it."""

    policy: str
    excludes: str | None
    keys: tuple[str, ...]
    output: str | None


def convert_policy(order: Conversion, messages: Messages) -> int:
    """Writes the current runtime policy of the same meaning as an old policy or allowlist."""
    text = load_any_policy("POLICY", order.policy, timestamp=timestamp_of(local_time()), messages=messages)
    draft = PolicyDraft()
    policy = parse_runtime_policy(text)
    draft.add_document(policy.to_document())
    if order.excludes is not None:
        draft.excludes.update(load_excludes("--excludelist", order.excludes))
    draft.add_keys(verification_keys("--add-ima-signature-verification-key", order.keys))
    document = draft.to_document(timestamp_of(local_time()))
    document["meta"]["generator"] = policy.meta.generator
    return _write(document, order.output, messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureUpdate:
    """A policy, the findings that it is to answer, and which of them."""

    policy: str
    findings: str
    only: tuple[str, ...]
    force: bool
    output: str | None


def update_from_failure(order: FailureUpdate, messages: Messages) -> int:
    """Writes the policy with the digests that the findings show; status 3 if some cannot be answered so."""
    loaded = load_policy("POLICY", order.policy)
    asked = amendment(load_findings("--from-failure", order.findings), only=order.only, force=order.force)
    for finding, reason in asked.refused:
        messages.warning(printable(f"not taken: {finding.explanation}: {reason}"))
    before = loaded.policy.to_document()
    draft = PolicyDraft()
    draft.add_document(before)
    for section, target in zip(SECTIONS, (draft.digests, draft.keyrings, draft.buffers), strict=True):
        for name, digests in asked.added.get(section, {}).items():
            target.setdefault(name, set()).update(digests)
    document = draft.to_document(timestamp_of(local_time()))
    policy = compile_runtime_policy(document)
    difference = diff(loaded.policy, policy)
    if difference.is_empty:
        raise ConfigError(
            f"--from-failure {order.findings}: has nothing that would change the policy"
            + (f" about {', '.join(order.only)}" if order.only else "")
        )
    for line in _difference_lines(difference):
        messages.note(line)
    if loaded.is_signed:
        messages.warning("the new policy is not signed: keylime-policy sign runtime signs it")
    _write(document, order.output, messages)
    return NOT_ITS_SOURCE if asked.refused else 0


def _write(document: dict[str, Any], output: str | None, messages: Messages) -> int:
    compile_runtime_policy(document)
    write_output("--output", output, json.dumps(document))
    messages.note(summary(document, output))
    return 0


def lint_file(path: str, excludes: str | None, *, as_json: bool) -> int:
    """Prints a line for each remark on a policy, allowlist or exclude list; status 1 if there are any."""
    text = read_text("POLICY", path)
    if not text.strip():
        raise ConfigError(f"POLICY {path}: is empty")
    if is_reference_state(text):
        if excludes is not None:
            raise ConfigError("--excludelist goes with runtime policies, and this is a reference state")
        return lint_state(path, as_json=as_json)
    if text.lstrip().startswith("{") or is_allowlist(text):
        policy = parse_runtime_policy(load_any_policy("POLICY", path))
        found = [(path, _line(text, remark.place), remark) for remark in lint(policy)]
        digests = policy.digests
    else:
        found, digests = _expressions("POLICY", path, {}), {}
    if excludes is not None:
        found += _expressions("--excludelist", excludes, digests)
    if as_json:
        remarks = [LintRemark(file, line, remark.text, remark.remedy) for file, line, remark in found]
        sys.stdout.write(rendered(remarks))
    else:
        for file, line, remark in found:
            where = file if line is None else f"{file}:{line}"
            sys.stdout.write(printable(f"{where}: {remark.text}; {remark.remedy}") + "\n")
    return _DIFFERENT if found else 0


def _expressions(option: str, path: str, digests: DigestMap) -> list[tuple[str, int | None, Remark]]:
    sources = load_excludes(option, path)
    lines = [number for number, _ in numbered_excludes(read_text(option, path))]
    return [(path, lines[int(remark.place[1])], remark) for remark in lint_excludes(sources, digests)]


def _line(text: str, place: Place) -> int | None:
    """The line of a rule in a file of any form; None where its lines are not those of the policy."""
    if not place or is_envelope(text):
        return None
    if text.lstrip().startswith("{"):
        return line_of(text, place) or line_of(text, ("hashes", *place[1:]))  # of old JSON allowlists
    for number, line in enumerate(text.splitlines(), 1):
        _, _, name = line.strip().replace(" *", " ", 1).partition(" ")
        if name.strip().removeprefix(".").replace(" ", "_") == place[-1]:
            return number
    return None
