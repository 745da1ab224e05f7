"""`create runtime`: a runtime policy from measurements, file trees, lists and older policies."""

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.ima.keyrings import ImaKey, Keyring, parse_keyring, recognise_key
from keylime.ima.measurement_list import BOOT_AGGREGATE, Entry
from keylime.policy.allowlist import convert_allowlist, read_excludes
from keylime.policy.dsse import open_envelope
from keylime.policy.excludes import compile_excludes
from keylime.policy.runtime import (
    CURRENT_VERSION,
    GENERATOR_LEGACY,
    compile_runtime_policy,
    parse_runtime_policy,
)
from keylime_tenant.policy_tool.algorithms import (
    Claim,
    choose_algorithm,
    claim_of_digests,
    claim_of_list,
    claim_of_option,
)
from keylime_tenant.policy_tool.file_tree import ramdisk_digests, tree_digests
from keylime_tenant.policy_tool.files import blaming, read_input, read_text
from keylime_tenant.policy_tool.measured import demand_entries, measured_content
from keylime_tenant.policy_tool.messages import Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSources:
    """What a policy is to be made of, as the flags of `create runtime` say; paths are not yet read."""

    base_policy: str | None = None
    allowlist: str | None = None
    excludes: str | None = None
    ima_list: str | None = None
    hashes: bool = True  # take digests of files from the IMA list
    keyrings: bool = False
    buffers: bool = False
    ignored_keyrings: tuple[str, ...] = ()
    ima_keys: tuple[str, ...] = ()
    algorithm: str | None = None
    rootfs: str | None = None
    skip_paths: tuple[str, ...] = ()
    ramdisks: str | None = None


@dataclass(slots=True)
class PolicyDraft:
    """A runtime policy in the making: sets that sources are added to."""

    release: int = 0
    digests: dict[str, set[str]] = field(default_factory=dict)
    excludes: set[str] = field(default_factory=set)
    keyrings: dict[str, set[str]] = field(default_factory=dict)
    buffers: dict[str, set[str]] = field(default_factory=dict)
    ignored_keyrings: set[str] = field(default_factory=set)
    log_hash_alg: str = HashAlgorithm.SHA1.label
    dm_policy: object = None
    keys: dict[bytes, ImaKey] = field(default_factory=dict)  # by fingerprint

    def add_document(self, document: Mapping[str, Any]) -> None:
        """Adds the rules of a checked policy document; its origin and date do not count."""
        self.release = max(self.release, document["release"])
        _merge(self.digests, document["digests"])
        _merge(self.keyrings, document["keyrings"])
        _merge(self.buffers, document["ima-buf"])
        self.excludes.update(document["excludes"])
        self.ignored_keyrings.update(document["ima"]["ignored_keyrings"])
        self.log_hash_alg = document["ima"]["log_hash_alg"]
        self.dm_policy = document["ima"]["dm_policy"]
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
                "log_hash_alg": self.log_hash_alg,
                "dm_policy": self.dm_policy,
            },
            "ima-buf": _sorted(self.buffers),
            "verification-keys": Keyring(tuple(self.keys.values())).to_json(),
        }


def create_runtime_policy(
    sources: RuntimeSources, messages: Messages, now: datetime.datetime
) -> dict[str, Any]:
    """The document of a valid runtime policy. Raises ConfigError, naming the source that cannot be used."""
    draft = PolicyDraft(ignored_keyrings=set(sources.ignored_keyrings))
    claims = [claim_of_option(sources.algorithm)] if sources.algorithm else []
    _add_base(draft, sources, claims)
    _add_allowlist(draft, sources, claims)
    _add_excludes(draft, sources)
    entries = _read_list(sources, claims)
    algorithm = choose_algorithm(claims)
    _add_entries(draft, sources, entries, messages)
    _add_keys(draft, sources)
    if sources.rootfs is not None:
        _merge(
            draft.digests, tree_digests(Path(sources.rootfs), algorithm, messages, skip=sources.skip_paths)
        )
    if sources.ramdisks is not None:
        _merge(draft.digests, ramdisk_digests(Path(sources.ramdisks), algorithm, messages))
    document = draft.to_document(timestamp_of(now))
    messages.warnings(compile_runtime_policy(document).warnings)
    if not any((draft.digests, draft.keys, draft.keyrings, draft.buffers, draft.excludes)):
        messages.warning("the policy allows nothing: every measured file will be a failure")
    return document


def legacy_allowlist(document: Mapping[str, Any]) -> str:
    """The digests of a policy in lines of digest, two blanks and path, boot_aggregate first."""
    digests = document["digests"]
    paths = sorted(digests, key=lambda path: (path != BOOT_AGGREGATE, path))
    return "".join(f"{digest}  {path}\n" for path in paths for digest in digests[path])


def timestamp_of(now: datetime.datetime) -> str:
    """`now` in the form that policies have by convention."""
    return now.strftime("%Y-%m-%d %H:%M:%S.%f")


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


def _add_base(draft: PolicyDraft, sources: RuntimeSources, claims: list[Claim]) -> None:
    path = sources.base_policy
    if path is None:
        return
    text = read_text("--base-policy", path)
    with blaming("--base-policy", path):
        document = parse_runtime_policy(open_envelope(text)).to_document()
    draft.add_document(document)
    _add_claim(claims, claim_of_digests(f"--base-policy {path}", document["digests"]))


def _add_allowlist(draft: PolicyDraft, sources: RuntimeSources, claims: list[Claim]) -> None:
    path = sources.allowlist
    if path is None:
        return
    text = read_text("--allowlist", path)
    with blaming("--allowlist", path):
        document = json.loads(convert_allowlist(text))
    _merge(draft.digests, document["digests"])
    _merge(draft.keyrings, document["keyrings"])
    _add_claim(claims, claim_of_digests(f"--allowlist {path}", document["digests"]))


def _add_excludes(draft: PolicyDraft, sources: RuntimeSources) -> None:
    path = sources.excludes
    if path is not None:
        expressions = read_excludes(read_text("--excludelist", path))
        with blaming("--excludelist", path):
            compile_excludes(expressions, "expressions")
        draft.excludes.update(expressions)


def _read_list(sources: RuntimeSources, claims: list[Claim]) -> list[Entry]:
    path = sources.ima_list
    if path is None:
        return []
    option = "--ima-measurement-list"
    entries = demand_entries(option, path, read_input(option, path))
    _add_claim(claims, claim_of_list(f"{option} {path}", entries))
    return entries


def _add_entries(
    draft: PolicyDraft, sources: RuntimeSources, entries: list[Entry], messages: Messages
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


def _add_claim(claims: list[Claim], claim: Claim | None) -> None:
    if claim is not None:
        claims.append(claim)


def _merge(section: dict[str, set[str]], found: Mapping[str, Iterable[str]]) -> None:
    for name, digests in found.items():
        section.setdefault(name, set()).update(digests)


def _sorted(section: Mapping[str, set[str]]) -> dict[str, list[str]]:
    return {name: sorted(section[name]) for name in sorted(section)}
