"""What the pages of policies show. Pure: what the verifier said comes in as values."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from urllib.parse import quote

from keylime.documents.dsse import open_envelope
from keylime.errors import KeylimeError
from keylime.findings.finding import printable
from keylime.ima.runtime_policy import diff, parse_runtime_policy
from keylime.messages.verification import PolicyVersions
from keylime_tenant.dashboard.fleet_page import FleetQuery, machine_href
from keylime_tenant.terminal import moment
from keylime_tenant.told_status import ToldStatus

SHOWN_LINES = 1000


@dataclass(frozen=True, slots=True)
class PolicyKindPages:
    """Policies of one kind: their word in addresses, their path and their list at the verifier."""

    word: str
    path: str
    title: str
    names_key: str


KINDS: Mapping[str, PolicyKindPages] = {
    kind.word: kind
    for kind in (
        PolicyKindPages("runtime", "allowlists", "Runtime policies", "runtimepolicy names"),
        PolicyKindPages("boot", "mbpolicies", "Measured boot policies", "mbpolicy names"),
    )
}


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """One policy of a list."""

    name: str
    href: str
    machines: int
    machines_href: str


@dataclass(frozen=True, slots=True)
class PolicyGroup:
    """All policies of a kind."""

    title: str
    policies: Sequence[NamedPolicy]


def policies_page(
    names: Mapping[str, Sequence[str]], statuses: Mapping[str, ToldStatus]
) -> list[PolicyGroup]:
    """The policies by the words of their kinds, each with how many machines are held to it."""
    groups = []
    for word, found in names.items():
        kind = KINDS[word]
        used: dict[str, int] = {}
        for status in statuses.values():
            for name in _used(kind, status):
                used[name] = used.get(name, 0) + 1
        policies = [
            NamedPolicy(
                printable(name), policy_href(kind, name), used.get(name, 0), FleetQuery(text=name).href()
            )
            for name in sorted(found)
        ]
        groups.append(PolicyGroup(kind.title, policies))
    return groups


def _used(kind: PolicyKindPages, status: ToldStatus) -> set[str]:
    if kind.word == "boot":
        names = {status.mb_policy_name}
    else:
        names = {status.runtime_policy_name, *(part.name for part in status.parts if not part.has_ended)}
    return {name for name in names if isinstance(name, str) and name}


def policy_href(kind: PolicyKindPages, name: str) -> str:
    """The address of a policy's page."""
    return f"/policies/{kind.word}/{quote(name, safe='')}"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a policy."""

    number: int
    stored: str
    actor: str
    sha256: str
    is_current: bool


@dataclass(frozen=True, slots=True)
class DifferenceLine:
    """One line of a difference."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is different between two versions; `left_off` lines are not shown."""

    former: int
    latter: int
    lines: Sequence[DifferenceLine]
    left_off: int = 0


@dataclass(frozen=True, slots=True)
class PolicyPage:
    """One policy."""

    name: str
    href: str
    title: str
    versions: Sequence[Version]
    machines: Sequence[tuple[str, str]]  # ids and addresses
    left_off: int
    comparison: Comparison | None
    chosen: tuple[int, int]  # which two are compared, or are offered for it


def policy_page(kind: PolicyKindPages, found: PolicyVersions, comparison: Comparison | None) -> PolicyPage:
    """The page of one policy."""
    numbers = [version.version for version in found.versions]
    newest = numbers[0] if numbers else 0
    offered = (numbers[1] if len(numbers) > 1 else newest, newest)
    return PolicyPage(
        name=printable(found.name),
        href=policy_href(kind, found.name),
        title=kind.title,
        versions=[
            Version(
                one.version,
                "not known" if one.at is None else moment(one.at),
                printable(one.actor or "not known"),
                printable(one.sha256),
                one.is_current,
            )
            for one in found.versions
        ],
        machines=[(printable(agent), machine_href(agent)) for agent in found.agents],
        left_off=found.left_off,
        comparison=comparison,
        chosen=offered if comparison is None else (comparison.former, comparison.latter),
    )


def compare(kind: PolicyKindPages, former: tuple[int, str], latter: tuple[int, str]) -> Comparison:
    """What is different between two versions, each a number and its text."""
    differs = _runtime_lines if kind.word == "runtime" else _text_lines
    try:
        lines = [*differs(former[1], latter[1])]
    except KeylimeError as error:  # accepted long ago by looser rules
        lines = [DifferenceLine(f"cannot be compared rule by rule: {error}", "doubtful")]
    shown = lines[:SHOWN_LINES] or [DifferenceLine("Nothing: both give the same verdicts.")]
    return Comparison(former[0], latter[0], shown, max(0, len(lines) - SHOWN_LINES))


def _runtime_lines(former: str, latter: str) -> Iterator[DifferenceLine]:
    before, after = (parse_runtime_policy(open_envelope(text), is_stored=True) for text in (former, latter))
    found = diff(before, after)
    for sign, style, sections in (("+", "added", found.added), ("-", "removed", found.removed)):
        for section, names in sections.items():
            for name, values in names.items():
                for value in values or ("",):
                    yield DifferenceLine(printable(f"{sign} {section} {name} {value}".rstrip()), style)
    for sign, style, excludes in (
        ("+", "added", found.excludes_added),
        ("-", "removed", found.excludes_removed),
    ):
        for pattern in excludes:
            yield DifferenceLine(printable(f"{sign} excludes {pattern}"), style)
    for name in found.changed:
        yield DifferenceLine(printable(f"~ {name} is another"), "doubtful")


def _text_lines(former: str, latter: str) -> Iterator[DifferenceLine]:
    styles = {"+": "added", "-": "removed"}
    for text in islice(difflib.unified_diff(_pretty(former), _pretty(latter), lineterm=""), 2, None):
        yield DifferenceLine(printable(text), styles.get(text[:1], ""))


def _pretty(text: str) -> list[str]:
    try:
        return json.dumps(json.loads(text), indent=1, sort_keys=True).splitlines()
    except (ValueError, RecursionError):
        return text.splitlines()
