"""Why an agent fails: its findings, since when, what changed before, and what to type next."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from keylime.findings.explain import terminal_lines
from keylime.findings.finding import printable
from keylime.ima.amendments import amendment
from keylime.messages.history import HistoryEvent
from keylime.messages.verifier import FindingSummary
from keylime_tenant.history import history_lines
from keylime_tenant.standing import Standing, standing_of
from keylime_tenant.terminal import Terminal, ago, moment
from keylime_tenant.told_status import ToldStatus

_CHANGES = frozenset(
    {"changed", "enrolled", "reactivated", "rebooted", "held_to", "policy_replaced", "policy_stored"}
)
_SHOWN_CHANGES = 10
_LONGEST_LIST = 20  # paths in a command


@dataclass(frozen=True, slots=True)
class Case:
    """One agent's standing, with what the history tells of it."""

    agent_id: str
    status: ToldStatus
    findings: Sequence[FindingSummary]
    left_off: int  # findings that there were beside those
    fall: HistoryEvent | None  # when it began to stand so
    before: Sequence[HistoryEvent]  # what changed until then, since it fell the time before


def case_of(agent_id: str, status: ToldStatus, events: Sequence[HistoryEvent]) -> Case:
    """What is known of an agent."""
    findings = status.findings
    states = [event for event in events if event.kind == "state"]
    fall = None
    if findings:
        # The last change that says what the status says; a fall that was told again began before, unless the
        # agent was given another chance meanwhile.
        for event in reversed(events):
            if event.kind == "reactivated" and fall is not None:
                break
            if event.kind != "state":
                continue
            if not event.details.get("findings"):
                break
            fall = event
    first = 0 if fall is None else fall.id
    falls = [event.id for event in states if event.details.get("findings") and event.id < first]
    earlier = falls[-1] if falls else 0
    before = [event for event in events if event.kind in _CHANGES and earlier < event.id < first]
    last = states[-1] if states else None
    left_off = int(last.details.get("findings_left_off", 0)) if findings and last is not None else 0
    return Case(agent_id, status, findings, left_off, fall, before[-_SHOWN_CHANGES:])


def next_commands(case: Case) -> list[str]:
    """What an operator types next, to be copied; nothing for an agent that passes."""
    me = shlex.quote(case.agent_id)
    standing = standing_of(case.status)
    if standing is Standing.STOPPED:
        return [f"keylime_tenant reactivate -u {me}"]
    if not case.findings:
        return (
            [] if standing in (Standing.ATTESTED, Standing.UNJUDGED) else [f"keylime_tenant status -u {me}"]
        )
    if any(finding.event_id.startswith("internal.verifier.wrong_key") for finding in case.findings):
        return [f"keylime_tenant update -u {me}"]
    if all(finding.event_id.startswith("internal.verifier.") for finding in case.findings):
        return [f"keylime_tenant reactivate -u {me}"]
    asked = amendment(case.findings)
    paths = sorted({name for names in asked.added.values() for name in names})
    if not paths:
        return []
    if not asked.refused:
        return [f"keylime_tenant diff -u {me}", f"keylime_tenant approve -u {me}"]
    chosen = " ".join(f"--only {shlex.quote(path)}" for path in paths[:_LONGEST_LIST])
    return [f"keylime_tenant diff -u {me}", f"keylime_tenant approve -u {me} {chosen}"]


def why_lines(case: Case, terminal: Terminal, now: float) -> Iterator[str]:
    """The whole answer."""
    standing = standing_of(case.status)
    name = terminal.paint(printable(case.agent_id), "strong")
    yield f"{name}  {terminal.paint(standing.word, standing.style)}"
    if case.fall is not None:
        yield f"   since {moment(case.fall.at)}, {ago(case.fall.at, now)}"
    since = case.status.unreachable_since
    if since and not case.findings:
        place = f" at {printable(case.status.ip)} port {case.status.port}" if case.status.ip else ""
        does = "heard from" if case.status.attests_by_itself else "reached"
        yield f"   the verifier has not {does} its agent{place} since {moment(since)}, {ago(since, now)}"
        yield "   hint: is the machine up, its agent running, its network open? See the verifier's log"
    elif not case.findings:
        yield "   no finding speaks against it"
    for number, finding in enumerate(case.findings, 1):
        title = f"{number}. {printable(finding.event_id)} ({printable(finding.severity)})"
        yield f"   {terminal.paint(title, 'strong')}"
        for line in terminal_lines(finding):
            yield f"      {line}"
    if case.left_off:
        yield f"   and {case.left_off} more findings, which are not kept: see the verifier's log"
    if case.before:
        yield terminal.paint("What changed before:", "quiet")
        yield from history_lines(case.before, terminal)
    elif case.fall is not None:
        yield terminal.paint("Nothing that the verifier knows of has changed before.", "quiet")
    refused = amendment(case.findings).refused
    for finding, reason in refused:
        if not finding.event_id.startswith("internal."):
            yield f"not to be approved: {printable(finding.path or finding.event_id)}: {reason}"
    commands = next_commands(case)
    if commands:
        yield terminal.paint("Next:", "quiet")
        yield from (f"   {command}" for command in commands)


def difference_lines(findings: Sequence[FindingSummary], terminal: Terminal) -> Iterator[str]:
    """What was measured against what the policy lists, file by file."""
    for finding in findings:
        place = printable(finding.path or finding.event_id)
        where = "" if finding.log_index is None else f"  entry {finding.log_index}"
        rule = "" if finding.rule is None else f"  {finding.rule}"
        yield f"{terminal.paint(place, 'strong')}{where}{rule}"
        for digest in finding.expected:
            yield terminal.paint(f"   - {printable(digest)}", "bad")
        if finding.observed is not None:
            yield terminal.paint(f"   + {printable(finding.observed)}", "good")
        if not finding.expected and finding.observed is None:
            yield f"   {printable(finding.explanation)}"
