"""`create runtime`: a runtime policy from measurements, file trees, lists and older policies."""

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.ima.allowlist import convert_allowlist, read_excludes, unread_members
from keylime.ima.keyrings import ImaKey, Keyring, parse_keyring, recognise_key
from keylime.ima.measurement_list import BOOT_AGGREGATE, Entry
from keylime.ima.runtime_policy import (
    CURRENT_VERSION,
    GENERATOR_LEGACY,
    compile_runtime_policy,
)
from keylime_policy.algorithms import (
    AlgorithmClaim,
    begins_with_boot_aggregate,
    choose_algorithm,
    claim_of_digests,
    claim_of_list,
    claim_of_option,
    template_hash_of_list,
)
from keylime_policy.distributions import exclude_lines
from keylime_policy.file_tree import ramdisk_digests, tree_digests
from keylime_policy.files import STDOUT, read_input, read_text
from keylime_policy.fleet import file_table, machine_names, show_table
from keylime_policy.lint import prefix_remarks
from keylime_policy.measured import ascii_list, demand_entries, measured_content
from keylime_policy.messages import Messages
from keylime_policy.own_source import check_ima_list
from keylime_policy.packages.places import without_password
from keylime_policy.packages.sources import package_digests
from keylime_policy.policies import load_excludes, load_policy
from keylime_policy.source_options import PackageSource
from keylime_policy.sources import blaming
from keylime_policy.times import timestamp_of
from keylime_policy.working import working


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSources:
    """What a policy is to be made of, as the flags of `create runtime` say; paths are not yet read."""

    base_policy: str | None = None
    allowlist: str | None = None
    excludes: str | None = None
    distribution: str | None = None
    ima_list: str | None = None
    fleet: tuple[str, ...] = ()
    hashes: bool = True  # take digests of files from the IMA list
    keyrings: bool = False
    buffers: bool = False
    ignored_keyrings: tuple[str, ...] = ()
    ima_keys: tuple[str, ...] = ()
    algorithm: str | None = None
    rootfs: str | None = None
    skip_paths: tuple[str, ...] = ()
    ramdisks: str | None = None
    packages: tuple[PackageSource, ...] = ()

    @property
    def named(self) -> str:
        """The sources of digests that were given, as their flags."""
        flags = {
            "--ima-measurement-list": self.ima_list,
            "--rootfs": self.rootfs,
            "--ramdisk-dir": self.ramdisks,
            "--allowlist": self.allowlist,
            "--base-policy": self.base_policy,
            **{source.option: without_password(source.where) for source in self.packages},
        }
        return ", ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)


@dataclass(slots=True)
class PolicyDraft:
    """A runtime policy in the making: sets that sources are added to."""

    release: int = 0
    digests: dict[str, set[str]] = field(default_factory=dict)
    excludes: set[str] = field(default_factory=set)
    keyrings: dict[str, set[str]] = field(default_factory=dict)
    buffers: dict[str, set[str]] = field(default_factory=dict)
    ignored_keyrings: set[str] = field(default_factory=set)
    log_hash_alg: HashAlgorithm = HashAlgorithm.SHA1
    dm_policy: object = None
    keys: dict[bytes, ImaKey] = field(default_factory=dict)  # by fingerprint

    def add_document(self, document: Mapping[str, Any]) -> None:
        """Adds the rules of a checked policy document; its origin and date do not count.

        Of rules that there is one of, those that are there already stay.
        """
        self.release = max(self.release, document["release"])
        _merge(self.digests, document["digests"])
        _merge(self.keyrings, document["keyrings"])
        _merge(self.buffers, document["ima-buf"])
        self.excludes.update(document["excludes"])
        self.ignored_keyrings.update(document["ima"]["ignored_keyrings"])
        if self.log_hash_alg is HashAlgorithm.SHA1:  # which every list has that says nothing
            self.log_hash_alg = HashAlgorithm.from_label(document["ima"]["log_hash_alg"])
        self.dm_policy = self.dm_policy or document["ima"]["dm_policy"]
        self.add_keys(parse_keyring(document["verification-keys"]).keys)

    def add_keys(self, keys: Iterable[ImaKey]) -> None:
        """Adds keys that verify file signatures."""
        self.keys.update({key.fingerprint: key for key in keys})

    def to_document(self, timestamp: str) -> dict[str, Any]:
        """The document: names and lists sorted, so that equal rules make equal texts."""
        return {
            "meta": {"version": CURRENT_VERSION, "generator": GENERATOR_LEGACY, "timestamp": timestamp},
            "release": self.release,
            "digests": _sorted(self.digests),
            "excludes": sorted(self.excludes),
            "keyrings": _sorted(self.keyrings),
            "ima": {
                "ignored_keyrings": sorted(self.ignored_keyrings),
                "log_hash_alg": self.log_hash_alg.label,
                "dm_policy": self.dm_policy,
            },
            "ima-buf": _sorted(self.buffers),
            "verification-keys": Keyring(tuple(self.keys.values())).to_json(),
        }


def create_runtime_policy(
    sources: RuntimeSources, messages: Messages, now: datetime.datetime
) -> tuple[dict[str, Any], int]:
    """The document of a valid runtime policy, and the exit status that its own IMA list gives.

    Raises ConfigError, naming the source that cannot be used.
    """
    draft = PolicyDraft(ignored_keyrings=set(sources.ignored_keyrings))
    claims = [claim_of_option(sources.algorithm)] if sources.algorithm else []
    with working(messages, "Reading lists"):
        _add_base(draft, sources, claims)
        _add_allowlist(draft, sources, claims, messages)
        _add_excludes(draft, sources, messages)
        ima_lists = _read_lists(draft, sources, claims, messages)
        algorithm = choose_algorithm(claims)
        for ima_list in ima_lists:
            _add_entries(draft, sources, ima_list.entries, messages)
    _add_keys(draft, sources)
    if sources.rootfs is not None:
        _merge(
            draft.digests, tree_digests(Path(sources.rootfs), algorithm, messages, skip=sources.skip_paths)
        )
    if sources.ramdisks is not None:
        _merge(draft.digests, ramdisk_digests(Path(sources.ramdisks), algorithm, messages))
    for source in sources.packages:
        _merge(draft.digests, package_digests(source, algorithm, messages, now))
    if not any((draft.digests, draft.keys, draft.keyrings, draft.buffers, draft.excludes)):
        raise ConfigError(
            "there is nothing to make a policy of, and an empty one would reject every machine: give "
            "--ima-measurement-list, --rootfs, --allowlist, packages, an image, or --base-policy"
            + (f" ({sources.named} gave nothing)" if sources.named else "")
        )
    document = draft.to_document(timestamp_of(now))
    policy = compile_runtime_policy(document)
    messages.warnings(policy.warnings)
    messages.warnings(f"{one.text}; {one.remedy}" for one in prefix_remarks(policy.digests))
    if sources.fleet:
        show_table(
            *file_table({one.source: _files_of(one.entries) for one in ima_lists}), len(ima_lists), messages
        )
    status = 0
    with working(messages, "Trying the policy on its source"):
        for ima_list in ima_lists:
            # Of a part, and without its digests, nothing could be said.
            if sources.hashes and begins_with_boot_aggregate(ima_list.entries):
                status = max(status, check_ima_list(policy, ima_list.text, messages, ima_list.source))
    return document, status


def legacy_allowlist(document: Mapping[str, Any]) -> str:
    """The digests of a policy in lines of digest, two blanks and path, boot_aggregate first."""
    digests = document["digests"]
    paths = sorted(digests, key=lambda path: (path != BOOT_AGGREGATE, path))
    return "".join(f"{digest}  {path}\n" for path in paths for digest in digests[path])


def summary(document: Mapping[str, Any], output: str | None) -> str:
    """What a policy holds, in one line, and where it went."""
    parts = [
        _counted(document["digests"], "file", digests=True),
        _counted(document["keyrings"], "keyring"),
        _counted(document["ima-buf"], "buffer"),
        _counted(document["excludes"], "exclude"),
    ]
    held = ", ".join(part for part in parts if part) or "nothing"
    if document["verification-keys"]:
        held += ", with keys that sign files"
    place = "standard output" if output is None or output in STDOUT else output
    return f"the policy has {held}; written to {place}"


def _counted(section: Mapping[str, Any] | Sequence[str], what: str, *, digests: bool = False) -> str:
    count = len(section)
    if not count:
        return ""
    text = f"{count} {what}{'' if count == 1 else 's'}"
    if digests and isinstance(section, Mapping):
        total = sum(map(len, section.values()))
        text += f" with {total} digest{'' if total == 1 else 's'}"
    return text


def verification_keys(option: str, paths: Iterable[str]) -> list[ImaKey]:
    """The keys of files that `option` names: certificates, public or private keys. Raises ConfigError."""
    keys = []
    for path in paths:
        with blaming(option, path):
            key = recognise_key(read_input(option, path))
        if key is None:
            raise ConfigError(f"{option} {path}: holds no certificate, public key or unencrypted private key")
        keys.append(key)
    return keys


def _add_base(draft: PolicyDraft, sources: RuntimeSources, claims: list[AlgorithmClaim]) -> None:
    path = sources.base_policy
    if path is None:
        return
    document = load_policy("--base-policy", path).policy.to_document()
    draft.add_document(document)
    _add_claim(claims, claim_of_digests(f"--base-policy {path}", document["digests"]))


def _add_allowlist(
    draft: PolicyDraft, sources: RuntimeSources, claims: list[AlgorithmClaim], messages: Messages
) -> None:
    path = sources.allowlist
    if path is None:
        return
    text = read_text("--allowlist", path)
    with blaming("--allowlist", path):
        document = json.loads(convert_allowlist(text))
        messages.warnings([f"--allowlist {path}: {words}" for words in unread_members(text)])
    draft.add_document(document)
    _add_claim(claims, claim_of_digests(f"--allowlist {path}", document["digests"]))


def _add_excludes(draft: PolicyDraft, sources: RuntimeSources, messages: Messages) -> None:
    if sources.distribution is not None:
        lines = exclude_lines(sources.distribution)
        messages.note(f"excluded for {sources.distribution}, and so not judged:")
        for line in lines:
            messages.note(f"  {line}")
        draft.excludes.update(read_excludes("\n".join(lines)))
    path = sources.excludes
    if path is not None:
        draft.excludes.update(load_excludes("--excludelist", path))


@dataclass(frozen=True, slots=True)
class _ImaList:
    """An IMA list as an agent would send it, and its entries, of which there is one."""

    source: str
    text: bytes
    entries: Sequence[Entry]


def _read_lists(
    draft: PolicyDraft, sources: RuntimeSources, claims: list[AlgorithmClaim], messages: Messages
) -> list[_ImaList]:
    named = [] if sources.ima_list is None else [("--ima-measurement-list", sources.ima_list, "its source")]
    names = machine_names(sources.fleet)
    named += [("--for-fleet", path, name) for path, name in zip(sources.fleet, names, strict=True)]
    found = [_read_list(*one, draft, sources, claims, messages) for one in named]
    return [one for one in found if one is not None]


def _files_of(entries: Sequence[Entry]) -> Mapping[str, set[str]]:
    digests = measured_content(entries, frozenset()).digests
    return {path: values for path, values in digests.items() if path != BOOT_AGGREGATE}


def _read_list(
    option: str,
    path: str,
    name: str,
    draft: PolicyDraft,
    sources: RuntimeSources,
    claims: list[AlgorithmClaim],
    messages: Messages,
) -> _ImaList | None:
    source = f"{option} {path}"
    content = read_input(option, path)
    entries = demand_entries(option, path, content)
    if not entries:
        return None
    if not begins_with_boot_aggregate(entries):
        if BOOT_AGGREGATE not in draft.digests and sources.base_policy is None:
            raise ConfigError(
                f"{source}: does not begin with boot_aggregate; the whole list is needed, "
                "or a --base-policy that a part of one is added to"
            )
        messages.warning(f"{source}: does not begin with boot_aggregate, its entries are added as they are")
    algorithm = template_hash_of_list(source, entries)
    if algorithm is not draft.log_hash_alg:
        draft.log_hash_alg = algorithm
        messages.warning(
            f"{source}: has {algorithm.label} template hashes; "
            "agents must send a list of the same kind (their option ima_ml_path)"
        )
    _add_claim(claims, claim_of_list(source, entries))
    return _ImaList(name, ascii_list(content), entries)


def _add_entries(
    draft: PolicyDraft, sources: RuntimeSources, entries: Sequence[Entry], messages: Messages
) -> None:
    measured = measured_content(entries, frozenset(draft.ignored_keyrings))
    messages.warnings(f"left out: {text}" for text in measured.left_out)
    if sources.hashes:
        _merge(draft.digests, measured.digests)
    for wanted, flag, found, section in (
        (sources.keyrings, "--keyrings", measured.keyrings, draft.keyrings),
        (sources.buffers, "--ima-buf", measured.buffers, draft.buffers),
    ):
        if wanted:
            _merge(section, found)
        elif found:
            messages.warning(f"the IMA list has entries of {', '.join(sorted(found))}; {flag} takes them in")


def _add_keys(draft: PolicyDraft, sources: RuntimeSources) -> None:
    draft.add_keys(verification_keys("--add-ima-signature-verification-key", sources.ima_keys))


def _add_claim(claims: list[AlgorithmClaim], claim: AlgorithmClaim | None) -> None:
    if claim is not None:
        claims.append(claim)


def _merge(section: dict[str, set[str]], found: Mapping[str, Iterable[str]]) -> None:
    for name, digests in found.items():
        if name in section:
            section[name].update(digests)
        else:
            section[name] = set(digests)


def _sorted(section: Mapping[str, set[str]]) -> dict[str, list[str]]:
    return {name: sorted(section[name]) for name in sorted(section)}
