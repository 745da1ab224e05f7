"""What in a runtime policy does not do what its author may think: rules that judge nothing, or everything.

Decisions only: places in a policy and what is to be said of them.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from keylime.documents.patterns import parse_pattern
from keylime.documents.places import Place
from keylime.ima.digest_maps import DigestMap
from keylime.ima.measurement_list import BOOT_AGGREGATE
from keylime.ima.runtime_policy import RuntimePolicy
from keylime.ima.unmatchable import name_doubt

# Where what runs is kept: whoever excludes one of these lets programs, libraries or modules be anything.
_PROGRAMS = (
    "/usr/bin/bash",
    "/usr/sbin/sshd",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib64/libc.so.6",
    "/usr/lib/systemd/systemd",
    "/usr/lib/modules/6.1.0-50-amd64/kernel/fs/ext4/ext4.ko",
    "/usr/libexec/sudo/sudoers.so",
    "/usr/local/bin/backup",
    "/usr/local/sbin/backup",
    "/bin/sh",
    "/sbin/init",
    "/lib/modules/6.1.0-50-amd64/kernel/fs/ext4/ext4.ko",
    "/init",
)
_TOP = {
    *("bin", "boot", "data", "dev", "etc", "home", "init", "lib", "lib32", "lib64", "libx32", "media", "mnt"),
    *("nix", "opt", "ostree", "proc", "root", "run", "sbin", "snap", "srv", "sys", "sysroot", "tmp"),
    *("usr", "var"),
}
_OF_USR = frozenset({"bin", "sbin", "lib", "lib64", "share", "libexec", "include", "local", "games", "src"})
_ONLY_IN_USR = frozenset({"share", "libexec", "include", "local", "games", "src"})
_INSIDE = re.compile(r"(/.+?)/(usr/(s?bin|lib|lib64)|etc|s?bin)/")
_MERGED = re.compile(r"/(s?bin|lib|lib32|lib64|libx32)/")
_ENOUGH = 5  # names that have to agree before one speaks of a prefix
_SHOWN = 3
# A dot that is neither escaped, nor in brackets, nor repeated, before an ending such as "log".
_BARE_DOT = re.compile(r"(?<![\\\[.])\.(?=[A-Za-z][A-Za-z0-9]{0,5}(\$|\)|\||$))")
_BRACKETS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to think about again: where in the policy, what, and what to do."""

    place: Place
    text: str
    remedy: str


def lint(policy: RuntimePolicy) -> list[Remark]:
    """All remarks on a policy, in the order of its members."""
    return [
        *_names(policy.digests),
        *prefix_remarks(policy.digests),
        *_lengths(policy.digests),
        *_zeros(policy.digests),
        *lint_excludes(policy.excludes.sources, policy.digests),
        *(Remark((), text, "see docs/policies.md") for text in _others(policy)),
    ]


def lint_excludes(sources: Sequence[str], digests: Mapping[str, object]) -> Iterator[Remark]:
    """Remarks on expressions, and on those that take files out which `digests` list."""
    seen: set[str] = set()
    for index, source in enumerate(sources):
        place = ("excludes", index)
        if source in seen:
            yield Remark(place, f"{source!r} is there twice", "remove one")
            continue
        seen.add(source)
        pattern = parse_pattern(source)
        excluded = [probe for probe in _PROGRAMS if pattern.compiled.match(probe)]
        if len(excluded) == len(_PROGRAMS):
            yield Remark(place, f"{source!r} excludes every file", "name what may be anything, to its end")
            continue
        if excluded:
            shown = ", ".join(excluded[:_SHOWN])
            yield Remark(
                place,
                f"{source!r} excludes places where programs are, such as {shown}",
                "excluded files are not judged when they are executed either: name single files",
            )
        yield from _shape(place, source)
        listed = [name for name in digests if name != BOOT_AGGREGATE and pattern.compiled.match(name)]
        if listed:
            shown = ", ".join(repr(name) for name in listed[:_SHOWN])
            yield Remark(
                place,
                f"{source!r} excludes {len(listed)} files whose digests are listed, such as {shown}",
                "their digests do not count: make the expression narrower, or take the files out",
            )


def _shape(place: Place, source: str) -> Iterator[Remark]:
    """What the writing of an expression says about its author's thoughts."""
    plain = _BRACKETS.sub("[]", source)
    if re.fullmatch(r"\^?/[\w/.\\-]*\w", source):
        yield Remark(
            place, f"{source!r} has no end: it excludes every name that only begins so", "end it with $ or /"
        )
    elif _has_open_end(plain):
        yield Remark(
            place,
            f"the $ of {source!r} ends only its last alternative",
            "put the alternatives into parentheses: (a|b)$",
        )
    if _BARE_DOT.search(plain):
        yield Remark(place, f"a dot in {source!r} stands for any character", r"write \. for a dot")
    if re.match(r"\^?\.\*", plain) and plain not in (".*", "^.*"):
        yield Remark(
            place, f"{source!r} holds in every directory, also where programs are", "begin it with the path"
        )
    if re.match(r"\^?[\w-]", plain) and not plain.startswith(BOOT_AGGREGATE):
        yield Remark(place, f"{source!r} never matches: names begin with /", "begin it with the path")
    if "*" in plain and re.search(r"/\*|^\*", plain):
        yield Remark(
            place,
            f"{source!r} looks like a shell pattern: * repeats what stands before it",
            "write .* or [^/]* for any characters",
        )


def _has_open_end(plain: str) -> bool:
    """Whether an expression has alternatives outside of all parentheses, not all of which end with $."""
    depth, parts, start = 0, [], 0
    for index, char in enumerate(plain):
        if index and plain[index - 1] == "\\":
            continue
        if char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and not depth:
            parts.append(plain[start:index])
            start = index + 1
    parts.append(plain[start:])
    ended = [part.endswith("$") for part in parts]
    return len(parts) > 1 and any(ended) and not all(ended)


def _names(digests: DigestMap) -> Iterator[Remark]:
    for name in digests:
        if name != BOOT_AGGREGATE and (doubt := name_doubt(name)) is not None:
            yield Remark(
                ("digests", name), f"{name!r} will not match any file: {doubt}", "write it as IMA prints it"
            )


def prefix_remarks(digests: Iterable[str]) -> Iterator[Remark]:
    """Names that all lack a part in front, or have one too many."""
    names = [name for name in digests if name != BOOT_AGGREGATE]
    if len(names) < _ENOUGH:
        return
    tops = Counter(name.split("/", 2)[1] for name in names if name.startswith("/"))
    if tops.keys() <= _OF_USR and tops.keys() & _ONLY_IN_USR:
        example = next(name for name in names if name.split("/", 2)[1] in _ONLY_IN_USR)
        yield Remark(
            ("digests", example),
            f"all names look as if their /usr were missing, such as {example!r}",
            "were they made with --rootfs /usr? Give the root of the tree, and pass over the rest (-s)",
        )
        return
    common = os.path.commonpath(names) if all(name.startswith("/") for name in names) else ""
    inside = _INSIDE.match(f"{names[0]}/")
    if inside is not None and common.startswith(inside[1]) and not common.startswith("/usr"):
        yield Remark(
            ("digests", names[0]),
            f"all names begin with {inside[1]}, as seen from outside of a tree, such as {names[0]!r}",
            f"was {inside[1]} to be given as --rootfs? IMA prints names as the machine sees them",
        )
        return
    strange = [name for name in names if name.split("/", 2)[1:2] and name.split("/", 2)[1] not in _TOP]
    if len(strange) == len(names):
        yield Remark(
            ("digests", names[0]),
            f"no name is in a directory that Linux has at its root; the first is {names[0]!r}",
            "is a part missing in front? IMA prints absolute names",
        )
    merged = [name for name in names if _MERGED.match(name)]
    if merged and any(name.startswith("/usr/bin/") for name in names):
        known = set(names)
        lone = [name for name in merged if f"/usr{name}" not in known]
        if len(lone) >= _ENOUGH and len(merged) < len(names) / 2:  # an initrd may have some of its own
            yield Remark(
                ("digests", lone[0]),
                f"{len(lone)} names such as {lone[0]!r} are not those of a machine on which /bin is /usr/bin",
                "there, IMA prints /usr/bin/...: list them under that name",
            )


def _lengths(digests: DigestMap) -> Iterator[Remark]:
    sizes = Counter(len(digest) for allowed in digests.values() for digest in allowed)
    if len(sizes) < 2:
        return
    usual = sizes.most_common(1)[0][0]
    name = next(name for name, allowed in digests.items() if any(len(digest) != usual for digest in allowed))
    count = sum(number for size, number in sizes.items() if size != usual)
    yield Remark(
        ("digests", name),
        f"{count} digests, such as that of {name!r}, are of another algorithm than the {sizes[usual]} others",
        "a kernel measures with one (ima_hash): remove those that it does not use",
    )


def _zeros(digests: DigestMap) -> Iterator[Remark]:
    for name, allowed in digests.items():
        if any(not any(digest) for digest in allowed):
            yield Remark(
                ("digests", name), f"{name!r} has a digest of zeros, which no content has", "remove it"
            )


def _others(policy: RuntimePolicy) -> Iterator[str]:
    """Warnings of the policy's own that no remark above has in other words."""
    return (text for text in policy.warnings if not text.startswith(("digests:", "excludes[")))
