"""Reference states for measured boot that are there already: read, flattened, compared, looked over. Pure."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from keylime.documents.patterns import full_matcher, parse_pattern
from keylime.documents.places import Place
from keylime.documents.strict_json import load_document
from keylime.errors import PolicyError
from keylime.findings.finding import JsonValue
from keylime.ima.templates import DIGEST_SIZES
from keylime.measured_boot.boot_policy import (
    MeasuredBootPolicy,
    built_in_policies,
    compile_measured_boot_policy,
)
from keylime.measured_boot.pcr_sets import MEMBER
from keylime_policy.lint import Remark

# Lists that are sets; elsewhere the order is the order of the boot.
_SETS = frozenset(
    {
        *("pk", "kek", "db", "dbx", "vendor_db", "mok_list", "mok_list_x", "mokdig", "mokxdig"),
        *("drivers", "firmware_applications", "files", "commands", "kernels", "scrtm_and_bios"),
    }
)
_OF_COMPONENTS, _OF_EXAMPLE = frozenset({"chain", "components"}), frozenset({"kernels", "scrtm_and_bios"})
_HEX = re.compile("(0x)?((?:[0-9a-f]{2})+)")
_PATTERNS = ("command_line_pattern", "kernel_cmdline")
_STRANGE_LINES = ("init=/bin/sh", "root=/dev/sdz1 rw init=/bin/sh quiet")
# Digests of one algorithm, whatever was quoted: by the end of the member's name, or the whole of it.
_SHA256 = (
    *("images", "kernel_files", "initrd_files", "load_options", "initrds", "inputs", "extensions"),
    *("sections", "drivers", "firmware_applications", "files"),
)


@dataclass(frozen=True, slots=True)
class BootState:
    """A reference state: its document, and the policy that reads it."""

    document: Mapping[str, JsonValue]
    policy: MeasuredBootPolicy

    @property
    def makes_demands(self) -> bool:
        """Whether anything is demanded of what is booted."""
        return bool(self.document.keys() - {MEMBER})


def is_reference_state(text: str) -> bool:
    """Whether the text is a reference state for measured boot, as far as its members tell."""
    try:
        members = load_document(text, "the policy")
    except PolicyError:
        return False
    if not isinstance(members, dict):
        return False
    return bool(members.keys() & (_OF_COMPONENTS | _OF_EXAMPLE)) or not members.keys() - {MEMBER}


def read_reference_state(text: str) -> BootState:
    """The reference state in `text`, which is one. Raises PolicyError, which names the member."""
    document = load_document(text, "the reference state")
    name = "components" if document.keys() & _OF_COMPONENTS else "example"
    policy = compile_measured_boot_policy(text, policy_name=name, registry=built_in_policies())
    if policy is None:
        raise PolicyError("the reference state says nothing")
    return BootState(document, policy)


def leaves(value: JsonValue, place: str = "") -> Iterator[tuple[str, str]]:
    """The demands of a reference state: where each stands, and what it is."""
    if isinstance(value, dict) and value and not (place and _is_flat(value)):
        for name, member in value.items():
            yield from leaves(member, f"{place}.{name}" if place else name)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            plain = not isinstance(item, dict | list) or (isinstance(item, dict) and _is_flat(item))
            yield from leaves(item, place if plain else f"{place}[{index}]")
    else:
        yield place, _shown(value)


def differences(old: JsonValue, new: JsonValue, place: str = "") -> Iterator[tuple[str, str, str]]:
    """What each has and the other has not: `-` or `+`, where, and what; `!` where only the order differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            inner = f"{place}.{name}" if place else name
            if name in old and name in new:
                yield from differences(old[name], new[name], inner)
            elif name in old:
                yield from (("-", *leaf) for leaf in leaves(old[name], inner))
            else:
                yield from (("+", *leaf) for leaf in leaves(new[name], inner))
    elif isinstance(old, list) and isinstance(new, list):
        yield from _list_differences(old, new, place)
    elif _plain(old) != _plain(new):
        yield from (("-", *leaf) for leaf in leaves(old, place))
        yield from (("+", *leaf) for leaf in leaves(new, place))


def _list_differences(
    old: list[JsonValue], new: list[JsonValue], place: str
) -> Iterator[tuple[str, str, str]]:
    before, after = [_plain(item) for item in old], [_plain(item) for item in new]
    rest = list(after)
    for item, plain in zip(old, before, strict=True):
        if plain in rest:
            rest.remove(plain)
        else:
            yield from (("-", *leaf) for leaf in leaves(item, place))
    for item, plain in zip(new, after, strict=True):
        if plain in rest:
            rest.remove(plain)
            yield from (("+", *leaf) for leaf in leaves(item, place))
    is_ordered = place.rpartition(".")[2] not in _SETS and not place.startswith("other_events.")
    if is_ordered and before != after and sorted(map(repr, before)) == sorted(map(repr, after)):
        yield "!", place, "the order differs"


def lint_reference_state(state: BootState) -> Iterator[Remark]:
    """What in it does not do what its author may think."""
    if not state.makes_demands:
        yield Remark(
            (),
            "makes no demand of what is booted: only that the logs lead to the quoted PCRs",
            "keylime-policy create measured-boot makes one of a good boot's log",
        )
        return
    yield from _switches(state.document)
    yield from _emptiness(state.document)
    yield from _values(state.document, ())


def _switches(document: Mapping[str, JsonValue]) -> Iterator[Remark]:
    components = document.get("secure_boot")
    place: Place = ("secure_boot", "on") if isinstance(components, dict) else ("has_secureboot",)
    switch = components.get("on") if isinstance(components, dict) else document.get("has_secureboot", True)
    lists = components if isinstance(components, dict) else document
    if switch is False:
        yield Remark(
            place,
            "Secure Boot has to be off: whatever these digests do not name is not signed by anybody either",
            "make it of a machine whose Secure Boot is on, if it can be",
        )
    elif not lists.get("dbx"):
        yield Remark(
            ("secure_boot",) if isinstance(components, dict) else (("dbx",) if "dbx" in document else ()),
            "dbx is empty: machines pass that have revoked no broken boot loader at all",
            "update dbx on the machine (fwupdmgr update), and make it anew",
        )


def _emptiness(document: Mapping[str, JsonValue]) -> Iterator[Remark]:
    parts = document.get("components")
    if isinstance(parts, dict):
        found = {f"components.{name}": parts.get(name) for name in ("firmware", "boot")}
    else:
        found = {name: document.get(name) for name in _OF_EXAMPLE}
    for name, variants in sorted(found.items()):
        if not variants:
            place = tuple(name.split(".")) if variants is not None else ()
            yield Remark(place, f"{name} is empty: no machine passes", "make it of a good boot's log")
    boots = parts.get("boot") if isinstance(parts, dict) else None
    seen: dict[str, str] = {}
    for name, variant in boots.items() if isinstance(boots, dict) else ():
        first = seen.setdefault(repr(_plain(variant)), name)
        if first != name:
            yield Remark(
                ("components", "boot", name),
                f"boot {name!r} says the same as {first!r}",
                f"keylime-policy update-reference --drop {name}",
            )


def _values(value: JsonValue, place: tuple[str | int, ...]) -> Iterator[Remark]:
    """Remarks on single members, wherever they stand."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _values(item, (*place, index))
    elif isinstance(value, dict):
        if _is_by_bank(value):
            yield from _banks(value, place)
        for name, member in value.items():
            yield from _values(member, (*place, name))
    elif isinstance(value, str):
        member = next((step for step in reversed(place) if isinstance(step, str)), "")
        if member in _PATTERNS:
            yield from _pattern(value, place)
        elif member in _SHA256 or member.endswith("_sha256"):
            yield from _length(value, "sha256", place)
        elif member in DIGEST_SIZES:
            yield from _length(value, member, place)


def _pattern(pattern: str, place: Place) -> Iterator[Remark]:
    matches = full_matcher(parse_pattern(pattern))
    if all(map(matches, _STRANGE_LINES)):
        yield Remark(
            place,
            f"{pattern!r} allows every command line, such as {_STRANGE_LINES[0]!r}",
            "write down what may differ, and nothing else",
        )
    elif re.search(r"(?<!\\)\.[*+]\$?$|^\^?\.[*+]", pattern):
        yield Remark(
            place,
            f"{pattern!r} is open at an end: {_STRANGE_LINES[0]!r} may be added to the command line there",
            "write down what may differ, and nothing else",
        )


def _banks(digests: Mapping[str, JsonValue], place: Place) -> Iterator[Remark]:
    if "sha256" not in digests:
        yield Remark(
            place,
            f"has digests of {', '.join(digests)} and none of sha256",
            "machines that quote their SHA-256 PCRs do not pass: make it of a log with that bank",
        )


def _length(text: str, algorithm: str, place: Place) -> Iterator[Remark]:
    match = _HEX.fullmatch(text)
    if match is not None and len(match[2]) != 2 * DIGEST_SIZES[algorithm]:
        yield Remark(
            place,
            f"{text!r} is no digest of {algorithm}, which has {2 * DIGEST_SIZES[algorithm]} hex digits",
            "it never matches: write it whole",
        )


def _is_by_bank(value: Mapping[str, JsonValue]) -> bool:
    return bool(value) and value.keys() <= DIGEST_SIZES.keys()


def _is_flat(value: Mapping[str, JsonValue]) -> bool:
    """Whether it is one thing, such as a key and its owner, or one digest by bank."""
    return _is_by_bank(value) or value.keys() == {"SignatureOwner", "SignatureData"}


def _plain(value: JsonValue) -> JsonValue:
    """The same without what makes no difference: the 0x of numbers."""
    if isinstance(value, dict):
        return {name: _plain(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    match = _HEX.fullmatch(value) if isinstance(value, str) else None
    return value if match is None else match[2]


def _shown(value: JsonValue) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value:
        return "  ".join(f"{name} {_shown(member)}" for name, member in value.items())
    if isinstance(value, Sequence | Mapping) and not value:
        return "nothing"
    return json.dumps(value)
