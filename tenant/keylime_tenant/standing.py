"""How an agent stands, read from a verifier's status: a word, a colour, and what a person should know."""

import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from keylime.findings.explain import terminal_lines
from keylime.findings.finding import printable
from keylime.messages.verifier import NOTHING_JUDGED, STOPPED_BY_OPERATOR, FindingSummary, OperationalState
from keylime_tenant.terminal import moment

JsonObject = Mapping[str, Any]

_SHOWN_FINDINGS = 5


class Standing(enum.IntEnum):
    """From the worst to the best, as people want to see them."""

    FAILED = 0
    UNREACHABLE = 1
    STOPPED = 2
    PENDING = 3
    UNJUDGED = 4
    ATTESTED = 5

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
    Standing.STOPPED: "stopped",
    Standing.PENDING: "pending",
    Standing.UNJUDGED: "nothing judged",
    Standing.ATTESTED: "attested",
}
_STYLES = {
    Standing.FAILED: "bad",
    Standing.UNREACHABLE: "bad",
    Standing.STOPPED: "doubtful",
    Standing.PENDING: "doubtful",
    Standing.UNJUDGED: "doubtful",
    Standing.ATTESTED: "good",
}
_REJECTED = {
    word
    for state in (OperationalState.FAILED, OperationalState.INVALID_QUOTE)
    for word in (int(state), state.text)
}
_STOPPED = {int(OperationalState.TENANT_FAILED), OperationalState.TENANT_FAILED.text}


def standing_of(status: JsonObject) -> Standing:
    """How the agent stands. A verdict against it outweighs silence, as in the verifier.

    Verifiers of other releases tell no `attestation_status`; then the state and the number of passes count.
    """
    state, told = status.get("operational_state"), status.get("attestation_status")
    if status.get("attestation_text") == STOPPED_BY_OPERATOR or state in _STOPPED:
        return Standing.STOPPED
    if status.get("unreachable_since"):
        return Standing.UNREACHABLE
    if told == "FAIL" or state in _REJECTED:
        return Standing.FAILED
    if told == "PENDING" or (told is None and not status.get("attestation_count")):
        return Standing.PENDING
    return Standing.UNJUDGED if is_unjudged(status) else Standing.ATTESTED


def state_text(state: object) -> object:
    """The words for `state`; anything that is not a known number is returned as it is."""
    if isinstance(state, int) and state in OperationalState.__members__.values():
        return OperationalState(state).text
    return state


def worded_status(status: JsonObject) -> dict[str, Any]:
    """A verifier's status object with the operational state in words, other fields untouched.

    Some verifiers show the V share of a payload key; that goes to no terminal and no log (P14, Y5).
    """
    hidden = {"v": None} if "v" in status else {}
    return {**status, **hidden, "operational_state": state_text(status.get("operational_state"))}


def is_unjudged(status: JsonObject) -> bool:
    """Whether the verifier says that an agent's passes mean nothing but that its TPM is alive."""
    return NOTHING_JUDGED in str(status.get("attestation_text", ""))


def remarks(status: JsonObject) -> list[str]:
    """What is said of an agent in one message: silence, findings with their reasons, reboots."""
    lines = list(_circumstances(status))
    findings = findings_of(status)
    for finding in findings[:_SHOWN_FINDINGS]:
        lines.extend(_finding_lines(finding))
    if len(findings) > _SHOWN_FINDINGS:
        lines.append(f"and {len(findings) - _SHOWN_FINDINGS} more findings: --json shows them")
    if not findings and status.get("last_event_id"):
        lines.append(f"last failure: {printable(str(status['last_event_id']))}")
    if status.get("reboots"):
        lines.append(f"rebooted {status['reboots']} times")
    return lines


def circumstances(status: JsonObject) -> list[str]:
    """What is to be known beside the findings."""
    lines = list(_circumstances(status))
    if not findings_of(status) and status.get("last_event_id"):
        lines.append(f"last failure: {printable(str(status['last_event_id']))}")
    if status.get("reboots"):
        lines.append(f"rebooted {status['reboots']} times")
    return lines


def _circumstances(status: JsonObject) -> Iterator[str]:
    if is_unjudged(status):
        yield f"{printable(str(status['attestation_text']))}: no policy makes a demand of the agent"
    if status.get("attestation_text") == STOPPED_BY_OPERATOR:
        yield f"{STOPPED_BY_OPERATOR}: -c reactivate goes on with it"
    if status.get("unreachable_since"):
        yield f"unreachable since {moment(status['unreachable_since'])}"


def findings_of(status: JsonObject) -> list[Any]:
    """The reasons of the last rejection, each as it came."""
    given = status.get("last_findings")
    return given if isinstance(given, list) else []


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
        try:
            summary = msgspec.convert(finding, FindingSummary)
        except msgspec.ValidationError:  # of a verifier that tells it in another form
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
    try:
        summary = msgspec.convert(finding, FindingSummary)
    except msgspec.ValidationError:
        return [printable(json.dumps(finding))]
    title = f"{printable(summary.event_id)} ({printable(summary.severity)})"
    return [title, *(f"  {line}" for line in terminal_lines(summary))]
