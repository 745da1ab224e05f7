"""Old allowlists and exclude lists, converted to runtime policies of the same meaning."""

import json
import re
from collections.abc import Iterator
from typing import Any

from keylime.documents.strict_json import load_document
from keylime.errors import PolicyError
from keylime.ima.keyrings import Keyring
from keylime.ima.names import list_text
from keylime.ima.runtime_policy import (
    CURRENT_VERSION,
    EMPTY_POLICY,
    GENERATOR_COMPATIBLE,
    GENERATOR_LEGACY,
    RENAMED,
    compile_runtime_policy,
    refuse_both_spellings,
)
from keylime.ima.templates import DIGEST_SIZES

_KEYRING_PREFIX = "%keyring:"
_DIGEST = re.compile(r"([a-z0-9_-]+:)?[0-9a-f]{40,128}")
# As sha256sum writes it: an asterisk marks binary mode, a backslash that the name is escaped.
_LINE = re.compile(r"(?P<escaped>\\?)(?P<digest>\S+)( \*|\s+)(?P<path>\S.*)")
# As `sha256sum --tag`, the tools of BSD and `openssl dgst` write it.
_TAGGED = re.compile(r"(?P<escaped>\\?)(?P<tag>[A-Za-z0-9/-]+) ?\((?P<path>.+)\) ?= (?P<digest>[0-9a-f]+)")
_LISTED = re.compile(rb"\\?([a-z0-9_-]+:)?[0-9a-f]+( \*|\s+)\S")
_HEX_DIGITS = frozenset(2 * size for size in DIGEST_SIZES.values())
_ESCAPE = re.compile(r"\\([\\nr])")
_UNESCAPED = {"\\": "\\", "n": "\n", "r": "\r"}
# What tenants sent, and verifiers kept, before there were runtime policies: a list and an exclude list.
_WRAPPERS = ("allowlist", "whitelist")
_COPIED = ("release", "excludes", "keyrings", "ima", "ima-buf", "verification-keys")


def convert_allowlist(
    text: str, excludes: str = "", *, keys: Keyring | None = None, timestamp: str | None = None
) -> str:
    """The runtime policy, as JSON text, that a flat or JSON allowlist and an exclude list stand for.

    `keys` are added to the verification keys. Raises PolicyError, which names the line or field.
    """
    if text.lstrip().startswith("{"):
        document = _convert_json(load_document(text, "the allowlist"))
    else:
        document = _convert_flat(text)
    document["meta"] = {"version": CURRENT_VERSION, "generator": GENERATOR_LEGACY}
    return _finish(document, excludes, keys, timestamp)


def listed_text(content: bytes) -> str:
    """The text of a list: names in an allowlist that are not UTF-8 are those of measurement lists.

    Raises UnicodeDecodeError for anything else that is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError:
        if not all(_LISTED.match(line) or _is_utf8(line) for line in content.split(b"\n")):
            raise
        return list_text(content)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def upgrade_runtime_policy(
    text: str, excludes: str = "", *, keys: Keyring | None = None, timestamp: str | None = None
) -> str:
    """A runtime policy brought to the current version, as JSON text; a current one is only extended.

    Raises PolicyError, which names the field.
    """
    given = load_document(text, "the runtime policy")
    if not isinstance(given, dict):
        raise PolicyError("the runtime policy is not a JSON object")
    meta = given.get("meta")
    version = meta.get("version") if isinstance(meta, dict) else 0
    if isinstance(version, int) and version >= CURRENT_VERSION:
        return _finish(dict(given), excludes, keys, None)
    if not given.keys() & (_empty().keys() - {"meta", "release"}):
        raise PolicyError(
            "the runtime policy has none of its members, such as 'digests': is it an answer or a file that "
            "holds the policy in one of its own? Then give what stands in that one"
        )
    if given.get("hashes") and given.get("digests"):
        raise PolicyError("the runtime policy has both 'hashes' and 'digests'")
    refuse_both_spellings(given)
    document = _empty()
    document.update({key: value for key, value in given.items() if key in document and value})
    document["ima"] = _completed(document["ima"])
    document["meta"] = {"version": CURRENT_VERSION, "generator": GENERATOR_COMPATIBLE}
    return _finish(document, excludes, keys, timestamp)


def read_excludes(text: str) -> list[str]:
    """The expressions in an exclude file, one on a line; empty lines and comments (#) are left out."""
    return [expression for _, expression in numbered_excludes(text)]


def numbered_excludes(text: str) -> list[tuple[int, str]]:
    """The expressions in an exclude file, each with the number of its line."""
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _convert_flat(text: str) -> dict[str, Any]:
    document = _empty()
    for number, line in enumerate(text.split("\n"), 1):
        if "\0" in line:
            raise PolicyError(
                f"allowlist line {number}: has a NUL byte, as `sha256sum -z` ends lines: "
                "make the list without -z"
            )
        stated = line.lstrip().rstrip("\r")
        match = _tagged(number, stated) or _LINE.fullmatch(stated)
        if match is None:
            if (alone := stated.rstrip()) and not _DIGEST.fullmatch(alone):
                raise PolicyError(
                    f"allowlist line {number}: {alone[:80]!r} is no digest and path, as sha256sum writes them"
                )
            continue  # empty, or a digest without a path, which can allow nothing
        digest, path = match["digest"], match["path"]
        if not _DIGEST.fullmatch(digest):
            raise PolicyError(
                f"allowlist line {number}: {digest[:80]!r} is not a digest in lower-case hex: lines are "
                "digest and path, as sha256sum writes them"
            )
        digits = len(digest.rpartition(":")[2])
        if digits not in _HEX_DIGITS:
            raise PolicyError(
                f"allowlist line {number}: a digest of {digits} hex digits is of no known algorithm"
            )
        section = "digests"
        if path.startswith(_KEYRING_PREFIX):
            section, path = "keyrings", path.removeprefix(_KEYRING_PREFIX)
        _add(document[section], _measured_name(path, is_escaped=bool(match["escaped"])), [_plain(digest)])
    return document


def _tagged(number: int, line: str) -> re.Match[str] | None:
    """The line in BSD style that `line` is. Raises PolicyError for a digest that no kernel measures with."""
    match = _TAGGED.fullmatch(line)
    if match is None:
        return None
    tag = match["tag"].lower()
    size = DIGEST_SIZES.get(tag) or DIGEST_SIZES.get(tag.replace("sha2-", "sha"))
    if size is None or len(match["digest"]) != 2 * size:
        raise PolicyError(
            f"allowlist line {number}: {match['tag']} of {len(match['digest'])} hex digits is no digest that "
            "a kernel measures with: make the list with sha256sum, or what the machines have as ima_hash="
        )
    return match


def _plain(digest: str) -> str:
    """`digest` without the name of the algorithm that it has the length of."""
    algorithm, _, plain = digest.rpartition(":")
    return plain if DIGEST_SIZES.get(algorithm, 0) * 2 == len(plain) else digest


def is_json_allowlist(given: object) -> bool:
    """Whether a document is an allowlist in JSON, alone or together with its exclude list."""
    return isinstance(given, dict) and (
        _wrapped(given) is not None or bool(given.get("hashes") and "digests" not in given)
    )


def _wrapped(given: dict[str, Any]) -> dict[str, Any] | None:
    """The allowlist that a document holds together with an exclude list."""
    return next((given[name] for name in _WRAPPERS if isinstance(given.get(name), dict)), None)


def unread_members(text: str) -> Iterator[str]:
    """What is said of members of an old JSON document that are neither converted nor kept."""
    given = load_document(text, "the policy") if text.lstrip().startswith("{") else {}
    inner = _wrapped(given)
    if inner is not None:
        given = {name: value for name, value in given.items() if name not in (*_WRAPPERS, "exclude")}
        given.update(inner if isinstance(inner.get("hashes"), dict) else {})
    for name in given.keys() - _empty().keys() - {"hashes"}:
        yield f"{name[:80]!r} is not read" + (
            f": it is called {RENAMED[name]!r} in policies" if name in RENAMED else ""
        )


def _measured_name(path: str, *, is_escaped: bool) -> str:
    """The name that the kernel prints for a file that was listed as `path`."""
    if is_escaped:
        path = _ESCAPE.sub(lambda match: _UNESCAPED[match[1]], path)
    # Lists made with "find . ..." at the root of the machine.
    if path.startswith("./"):
        path = path[1:]
    return path.replace(" ", "_")


def _convert_json(given: object) -> dict[str, Any]:
    inner = _wrapped(given) if isinstance(given, dict) else None
    if isinstance(given, dict) and inner is not None:
        document = _convert_json(inner if isinstance(inner.get("hashes"), dict) else {"hashes": inner})
        excludes = given.get("exclude") or []
        if not isinstance(excludes, list):
            raise PolicyError("exclude: expected a list of texts")
        document["excludes"] = [*document["excludes"], *excludes]
        return document
    if not isinstance(given, dict) or not given.get("hashes"):
        raise PolicyError(
            "the allowlist has no member 'hashes': is it a runtime policy? That is no allowlist "
            "(keylime-policy takes it as --base-policy, and keylime_tenant as --runtime-policy)"
        )
    if "digests" in given:
        raise PolicyError("the allowlist has both 'hashes' and 'digests'")
    refuse_both_spellings(given)
    document = _empty()
    document.update({key: given[key] for key in _COPIED if given.get(key)})
    document["digests"] = given["hashes"]
    document["ima"] = _completed(document["ima"])
    return document


def _finish(document: dict[str, Any], excludes: str, keys: Keyring | None, timestamp: str | None) -> str:
    if timestamp is not None:
        document["meta"] = {**document["meta"], "timestamp": timestamp}
    added = read_excludes(excludes)
    if added:
        document["excludes"] = [*document.get("excludes", []), *added]
    policy = compile_runtime_policy(document)
    if keys is not None and keys.keys:
        together = Keyring((*policy.verification_keys.keys, *keys.keys))
        document["verification-keys"] = together.to_json()
    return json.dumps(document)


def _completed(ima: object) -> object:
    """The section `ima` with defaults for members that old formats did not have."""
    return {**_empty()["ima"], **ima} if isinstance(ima, dict) else ima


def _add(section: dict[str, list[str]], name: str, digests: list[str]) -> None:
    known = section.setdefault(name, [])
    known.extend(digest for digest in digests if digest not in known)


def _empty() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(EMPTY_POLICY)
    return document
