"""The runtime policy: which files, keys and buffers a machine may measure, compiled for the appraisal.

The document's schema is in docs/policies.md. A compiled policy is immutable and shared by all agents that
use it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NewType

from keylime.documents.strict_json import load_document
from keylime.errors import PolicyError
from keylime.findings.finding import policy_version
from keylime.hashes import HashAlgorithm
from keylime.ima.device_mapper_policy import DeviceMapperPolicy, parse_device_mapper_policy
from keylime.ima.digest_maps import (
    DigestMap,
    digest_texts,
    encode_digest_map,
    kind_of,
    only_in,
    read_digest_map,
    united,
)
from keylime.ima.excludes import Excludes, compile_excludes
from keylime.ima.keyrings import Keyring, parse_keyring
from keylime.ima.unmatchable import name_warnings
from keylime.ima.usual_policy import load_usual_policy

CURRENT_VERSION = 1
GENERATOR_UNKNOWN = 0
GENERATOR_EMPTY = 1
GENERATOR_COMPATIBLE = 2
GENERATOR_LEGACY = 3  # converted from an allowlist, or made by the policy tool

MAX_POLICY_BYTES = 64 << 20

EMPTY_POLICY = (
    '{"meta": {"version": 1, "generator": 1}, "release": 0, "digests": {}, "excludes": [], "keyrings": {}, '
    '"ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null}, "ima-buf": {}, '
    '"verification-keys": ""}'
)

PolicyHash = NewType("PolicyHash", str)
"""The hex SHA-256 of a policy's canonical text (`to_json`): policies that mean the same have the same.

That of several policies that are united has the hash of each, with a plus sign between.
"""

_LOG_HASHES = ("sha1", "sha256", "sha384", "sha512")
_DIGEST_MEMBERS = frozenset({"digests", "keyrings", "ima-buf"})
RENAMED = {"exclude": "excludes", "keyring": "keyrings", "verification_keys": "verification-keys"}
JUDGES_NOTHING = (
    "the runtime policy judges nothing: it has no digests, keyrings, ima-buf, ima.dm_policy or "
    "verification-keys (an agent whose TPM policy has PCR 10 in its mask is allowed nothing)"
)


@dataclass(frozen=True, slots=True)
class PolicyMeta:
    """Where a policy comes from; `timestamp` is free text."""

    version: int
    generator: int
    timestamp: str | None = None


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class RuntimePolicy:
    """A checked and compiled runtime policy. Digests are raw bytes, without their algorithm.

    Policies that are equal in content have the same `content_hash`, whatever the order or spelling of the
    text that they were read from.
    """

    meta: PolicyMeta
    release: int
    digests: DigestMap
    excludes: Excludes
    keyrings: DigestMap
    ignored_keyrings: tuple[str, ...]
    log_hash_alg: HashAlgorithm
    dm_policy: DeviceMapperPolicy | None
    ima_buf: DigestMap
    verification_keys: Keyring
    warnings: tuple[str, ...]
    content_hash: PolicyHash
    # Of a union: those that are judged although some part ignores them.
    judged_keyrings: frozenset[str] = frozenset()

    @property
    def version(self) -> str:
        """The version of the policy, as people are told it."""
        return " + ".join(policy_version("runtime policy", one) for one in self.part_hashes)

    @property
    def part_hashes(self) -> list[PolicyHash]:
        """The hashes of those that are united in this policy; else its own."""
        return parts_of(self.content_hash)

    @property
    def generator(self) -> int:
        """What made the policy: one of the GENERATOR_ numbers."""
        return self.meta.generator

    @property
    def demands_ima(self) -> bool:
        """Whether the policy says anything, so that an IMA list must be there and is appraised (T19).

        What it says decides, and not who wrote it: `generator` can only make a demand of an empty policy,
        which then allows nothing. Excludes alone are no demand; they only take away from one.
        """
        return self.meta.generator > GENERATOR_EMPTY or bool(
            self.digests
            or self.keyrings
            or self.ima_buf
            or self.dm_policy is not None
            or self.verification_keys.keys
            or self.verification_keys.warnings  # keys were given, though none of use
        )

    def is_excluded(self, name: str) -> bool:
        """Whether some exclude expression matches at the start of `name`."""
        return self.excludes.match(name)

    def ignores_keyring(self, name: str) -> bool:
        """Whether keys of this keyring are neither judged nor learned."""
        if name in self.judged_keyrings:
            return False
        return name in self.ignored_keyrings or "*" in self.ignored_keyrings

    def to_document(self) -> dict[str, Any]:
        """The policy as the JSON document that operators write, digests and names sorted."""
        return {
            name: {key: list(texts) for key, texts in digest_texts(value).items()}
            if name in _DIGEST_MEMBERS
            else value
            for name, value in self._members().items()
        }

    def to_json(self) -> str:
        """The canonical text: one line of JSON."""
        return b"".join(self.canonical_parts()).decode()

    def canonical_parts(self) -> Iterator[bytes]:
        """The canonical text in UTF-8, in parts: the whole may be large."""
        before = "{"
        for name, value in sorted(self._members().items()):
            yield f'{before}"{name}":'.encode()
            yield encode_digest_map(value) if name in _DIGEST_MEMBERS else _canonical(value)
            before = ","
        yield b"}"

    def _members(self) -> dict[str, Any]:
        """The document, but for the digests, which are as they are here."""
        meta: dict[str, Any] = {"version": self.meta.version, "generator": self.meta.generator}
        if self.meta.timestamp is not None:
            meta["timestamp"] = self.meta.timestamp
        return {
            "meta": meta,
            "release": self.release,
            "digests": self.digests,
            "excludes": list(self.excludes.sources),
            "keyrings": self.keyrings,
            "ima": {
                "ignored_keyrings": list(self.ignored_keyrings),
                "log_hash_alg": self.log_hash_alg.label,
                "dm_policy": None if self.dm_policy is None else self.dm_policy.document,
            },
            "ima-buf": self.ima_buf,
            "verification-keys": self.verification_keys.to_json(),
        }


@dataclass(frozen=True, slots=True)
class PolicyDifference:
    """What `diff` found: per kind of rule what only the new policy has, and what only the old one had."""

    added: Mapping[str, Mapping[str, tuple[str, ...]]]
    removed: Mapping[str, Mapping[str, tuple[str, ...]]]
    excludes_added: tuple[str, ...]
    excludes_removed: tuple[str, ...]
    changed: tuple[str, ...]  # other fields that differ

    @property
    def is_empty(self) -> bool:
        """Whether both policies give the same verdicts."""
        return not (
            self.added or self.removed or self.excludes_added or self.excludes_removed or self.changed
        )


def parse_runtime_policy(
    text: str | bytes, *, max_bytes: int = MAX_POLICY_BYTES, is_stored: bool = False
) -> RuntimePolicy:
    """The policy in `text`, plain JSON (an envelope is opened by `keylime.documents.dsse` first).

    Raises PolicyError, which names the field. One that `is_stored` was accepted long ago, perhaps by looser
    rules, and is read as it was then.
    """
    return compile_runtime_policy(_load(text, max_bytes), is_stored=is_stored)


def _load(text: str | bytes, max_bytes: int) -> object:
    encoded = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(encoded) > max_bytes:
        raise PolicyError(f"the runtime policy has {len(encoded)} bytes: at most {max_bytes} are accepted")
    return load_usual_policy(encoded) or load_document(text, "the runtime policy")


def compile_runtime_policy(document: object, *, is_stored: bool = False) -> RuntimePolicy:
    """The policy in a decoded document. Raises PolicyError, which names the field."""
    root = _Section(document, "")
    if not is_stored:
        refuse_both_spellings(root.members)
    for old in ("hashes", "allowlist"):
        if old in root.members:
            raise PolicyError(
                f"{old!r} belongs to the old allowlist format: convert the file to a runtime policy"
            )
    meta, ima = root.section("meta"), root.section("ima")
    keyring = parse_keyring(root.text("verification-keys"), is_stored=is_stored)
    excludes = compile_excludes(root.texts("excludes"))
    dm_policy = ima.value("dm_policy")
    digests = root.digests("digests")
    policy = _with_content_hash(
        meta=PolicyMeta(meta.number("version"), _generator(meta), meta.optional_text("timestamp")),
        release=root.number("release"),
        digests=digests,
        excludes=excludes,
        keyrings=root.digests("keyrings"),
        ignored_keyrings=tuple(ima.texts("ignored_keyrings")),
        log_hash_alg=_log_hash(ima),
        dm_policy=None if dm_policy is None else parse_device_mapper_policy(dm_policy),
        ima_buf=root.digests("ima-buf"),
        verification_keys=keyring,
        warnings=(
            *_misspelt(root),
            *name_warnings(digests, "digests"),
            *excludes.warnings,
            *keyring.warnings,
        ),
    )
    return policy


def refuse_both_spellings(document: Mapping[str, object]) -> None:
    """Raises PolicyError for a document with a member in its old and in its new spelling (L5).

    Some readers take the one, some the other.
    """
    for old, new in RENAMED.items():
        if old in document and new in document:
            raise PolicyError(f"{old!r} and {new!r} are both given: the first is no longer read, remove it")


def merge(first: RuntimePolicy, second: RuntimePolicy) -> RuntimePolicy:
    """The policy that allows exactly what either allows. Raises PolicyError where both cannot hold."""
    if first.log_hash_alg is not second.log_hash_alg:
        raise PolicyError(
            f"ima.log_hash_alg: {first.log_hash_alg.label} and {second.log_hash_alg.label} cannot be merged"
        )
    dm_policy = first.dm_policy or second.dm_policy
    if first.dm_policy and second.dm_policy and first.dm_policy.document != second.dm_policy.document:
        raise PolicyError("ima.dm_policy: two different device-mapper policies cannot be merged")
    keys = {key.fingerprint: key for key in (*first.verification_keys.keys, *second.verification_keys.keys)}
    excludes = compile_excludes(sorted({*first.excludes.sources, *second.excludes.sources}))
    return _with_content_hash(
        meta=max(
            first.meta, second.meta, key=lambda meta: (meta.generator, meta.version, meta.timestamp or "")
        ),
        release=max(first.release, second.release),
        digests=united(first.digests, second.digests),
        excludes=excludes,
        keyrings=united(first.keyrings, second.keyrings),
        ignored_keyrings=tuple(sorted({*first.ignored_keyrings, *second.ignored_keyrings})),
        log_hash_alg=first.log_hash_alg,
        dm_policy=dm_policy,
        ima_buf=united(first.ima_buf, second.ima_buf),
        verification_keys=Keyring(tuple(keys[fingerprint] for fingerprint in sorted(keys))),
        warnings=excludes.warnings,
    )


def diff(old: RuntimePolicy, new: RuntimePolicy) -> PolicyDifference:
    """What `new` allows more and less than `old`, rule by rule; who made them and when does not count."""
    kinds = ("digests", "keyrings", "ima_buf")
    others = {
        "ima.ignored_keyrings": (set(old.ignored_keyrings), set(new.ignored_keyrings)),
        "ima.log_hash_alg": (old.log_hash_alg, new.log_hash_alg),
        "ima.dm_policy": (_dm_document(old), _dm_document(new)),
        "verification-keys": (old.verification_keys.keys, new.verification_keys.keys),
    }
    before, after = set(old.excludes.sources), set(new.excludes.sources)
    return PolicyDifference(
        added={kind: more for kind in kinds if (more := only_in(getattr(new, kind), getattr(old, kind)))},
        removed={kind: less for kind in kinds if (less := only_in(getattr(old, kind), getattr(new, kind)))},
        excludes_added=tuple(sorted(after - before)),
        excludes_removed=tuple(sorted(before - after)),
        changed=tuple(name for name, (was, is_now) in others.items() if was != is_now),
    )


class _Section:
    """A JSON object whose members are taken by name and type; errors name the place."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise PolicyError(f"{path or 'the runtime policy'}: expected an object, got {kind_of(value)}")
        self.members: dict[str, object] = value
        self._path = path

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def value(self, name: str) -> object:
        if name not in self.members:
            raise PolicyError(f"'{name}' is a required property: {self.path(name)} is missing")
        return self.members[name]

    def section(self, name: str) -> "_Section":
        return _Section(self.value(name), self.path(name))

    def number(self, name: str) -> int:
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise PolicyError(f"{self.path(name)}: expected an integer of 0 or more, got {kind_of(value)}")
        return value

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str):
            raise PolicyError(f"{self.path(name)}: expected a text, got {kind_of(value)}")
        return value

    def optional_text(self, name: str) -> str | None:
        return self.text(name) if name in self.members else None

    def digests(self, name: str) -> DigestMap:
        return read_digest_map(self.section(name).members, self.path(name))

    def texts(self, name: str) -> list[str]:
        value = self.value(name)
        if not isinstance(value, list):
            raise PolicyError(f"{self.path(name)}: expected a list of texts, got {kind_of(value)}")
        for index, item in enumerate(value):
            if not isinstance(item, str):
                raise PolicyError(f"{self.path(name)}[{index}]: expected a text, got {kind_of(item)}")
        return value


def parts_of(content_hash: PolicyHash) -> list[PolicyHash]:
    """The hashes of the policies that are united under this one."""
    return [PolicyHash(one) for one in content_hash.split("+")]


def _with_content_hash(**parts: Any) -> RuntimePolicy:
    unhashed = RuntimePolicy(**parts, content_hash=PolicyHash(""))
    if not unhashed.demands_ima:
        parts["warnings"] = (*parts["warnings"], JUDGES_NOTHING)
    content_hash = hashlib.sha256()
    for part in unhashed.canonical_parts():
        content_hash.update(part)
    return RuntimePolicy(**parts, content_hash=PolicyHash(content_hash.hexdigest()))


def _canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _generator(meta: _Section) -> int:
    generator = meta.number("generator")
    if generator > GENERATOR_LEGACY:
        raise PolicyError(f"{meta.path('generator')}: {generator} is not one of 0 to {GENERATOR_LEGACY}")
    return generator


def _log_hash(ima: _Section) -> HashAlgorithm:
    label = ima.text("log_hash_alg")
    if label not in _LOG_HASHES:
        raise PolicyError(f"{ima.path('log_hash_alg')}: {label!r} is not one of {', '.join(_LOG_HASHES)}")
    return HashAlgorithm.from_label(label)


def _dm_document(policy: RuntimePolicy) -> object:
    return None if policy.dm_policy is None else policy.dm_policy.document


def _misspelt(root: _Section) -> list[str]:
    return [
        f"the unknown key {key!r} is ignored: is {right!r} meant?"
        for key, right in RENAMED.items()
        if key in root.members
    ]
