"""How an agent stands, read from a verifier's status: a word, a colour, and what a person should know."""

import enum
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from keylime.findings.explain import terminal_lines
from keylime.findings.finding import printable
from keylime.messages.verifier import NOTHING_JUDGED, STOPPED_BY_OPERATOR, FindingSummary, OperationalState
from keylime_tenant.terminal import moment
from keylime_tenant.told_status import ToldStatus, read_part

_SHOWN_FINDINGS = 5


class Standing(enum.IntEnum):
    """From the worst to the best, as people want to see them."""

    FAILED = 0
    UNREACHABLE = 1
    OVERDUE = 2
    STOPPED = 3
    PENDING = 4
    UNJUDGED = 5
    ATTESTED = 6

    @property
    def word(self) -> str:
        """What the column says."""
        return _WORDS[self]

    @property
    def style(self) -> str:
        """How it is painted."""
        return _STYLES[self]


_WORDS = {
    Standing.FAILED: "failed",
    Standing.UNREACHABLE: "unreachable",
    Standing.OVERDUE: "overdue",
    Standing.STOPPED: "stopped",
    Standing.PENDING: "pending",
    Standing.UNJUDGED: "nothing judged",
    Standing.ATTESTED: "attested",
}
_STYLES = {
    Standing.FAILED: "bad",
    Standing.UNREACHABLE: "bad",
    Standing.OVERDUE: "bad",
    Standing.STOPPED: "doubtful",
    Standing.PENDING: "doubtful",
    Standing.UNJUDGED: "doubtful",
    Standing.ATTESTED: "good",
}
REJECTED = frozenset({OperationalState.FAILED, OperationalState.INVALID_QUOTE})


def standing_of(status: ToldStatus) -> Standing:
    """How the agent stands. A verdict against it outweighs silence, as in the verifier.

    Verifiers of other releases tell no `attestation_status`; then the state and the number of passes count.
    """
    told = status.attestation_status
    if status.attestation_text == STOPPED_BY_OPERATOR or status.state is OperationalState.TENANT_FAILED:
        return Standing.STOPPED
    if told == "TIMEOUT":
        return Standing.OVERDUE
    if status.unreachable_since:
        return Standing.UNREACHABLE
    if told == "FAIL" or status.state in REJECTED:
        return Standing.FAILED
    if told == "PENDING" or (told is None and not status.passes):
        return Standing.PENDING
    return Standing.UNJUDGED if is_unjudged(status) else Standing.ATTESTED


def is_unjudged(status: ToldStatus) -> bool:
    """Whether the verifier says that an agent's passes mean nothing but that its TPM is alive."""
    return NOTHING_JUDGED in status.attestation_text


def remarks(status: ToldStatus) -> list[str]:
    """What is said of an agent in one message: silence, findings with their reasons, reboots."""
    lines = list(_circumstances(status))
    findings = status.last_findings
    for finding in findings[:_SHOWN_FINDINGS]:
        lines.extend(_finding_lines(finding))
    if len(findings) > _SHOWN_FINDINGS:
        lines.append(f"and {len(findings) - _SHOWN_FINDINGS} more findings: --json shows them")
    return [*lines, *_events(status)]


def circumstances(status: ToldStatus) -> list[str]:
    """What is to be known beside the findings."""
    return [*_circumstances(status), *_events(status)]


def _circumstances(status: ToldStatus) -> Iterator[str]:
    if is_unjudged(status):
        yield f"{printable(status.attestation_text)}: no policy makes a demand of the agent"
    if status.attestation_text == STOPPED_BY_OPERATOR:
        yield f"{STOPPED_BY_OPERATOR}: -c reactivate goes on with it"
    if status.attests_by_itself:
        until = status.deadline
        yield "attests by itself" + (f", the next time by {moment(until)}" if until else "")
    if status.unreachable_since:
        yield f"unreachable since {moment(status.unreachable_since)}"


def _events(status: ToldStatus) -> Iterator[str]:
    if not status.last_findings and status.last_event_id:
        yield f"last failure: {printable(status.last_event_id)}"
    if status.reboots:
        yield f"rebooted {status.reboots} times"


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """Findings that differ in nothing but where they were found and what was there."""

    title: str
    places: Sequence[Sequence[str]]  # for each finding the lines that are its own
    common: Sequence[str]  # what is said of all of them


def grouped_findings(findings: Sequence[Any]) -> list[FindingGroup]:
    """The findings as `keylime-policy check` lays them out, those of one kind together."""
    groups: dict[object, list[FindingSummary]] = {}
    others = []
    for finding in findings:
        summary = read_part(finding, FindingSummary)
        if summary is None:
            others.append(FindingGroup(printable(json.dumps(finding)), (), ()))
            continue
        key = (summary.event_id, summary.severity, summary.explanation, summary.hint, summary.rule)
        groups.setdefault(key, []).append(summary)
    return [*(_group(members) for members in groups.values()), *others]


def _group(members: Sequence[FindingSummary]) -> FindingGroup:
    first = members[0]
    title = f"{printable(first.event_id)} ({printable(first.severity)})"
    if len(members) == 1:
        return FindingGroup(title, (), tuple(terminal_lines(first)))
    whole = [list(terminal_lines(member)) for member in members]
    count = 0  # of the last lines, which all have in common
    while all(len(lines) > count for lines in whole) and len({lines[-1 - count] for lines in whole}) == 1:
        count += 1
    places = tuple(tuple(lines[: len(lines) - count]) for lines in whole)
    return FindingGroup(f"{title}, {len(members)} times", places, tuple(whole[0][len(places[0]) :]))


def _finding_lines(finding: object) -> list[str]:
    summary = read_part(finding, FindingSummary)
    if summary is None:
        return [printable(json.dumps(finding))]
    title = f"{printable(summary.event_id)} ({printable(summary.severity)})"
    return [title, *(f"  {line}" for line in terminal_lines(summary))]
