"""What the page of one machine shows. Pure: what services said, and the time, come in as values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from keylime.findings.finding import printable
from keylime.ima.amendments import amendment
from keylime.messages.history import HistoryEvent
from keylime.messages.verifier import FindingSummary
from keylime_tenant import history
from keylime_tenant.dashboard.fleet_page import machine_href
from keylime_tenant.dashboard.sparkline import Sparkline, sparkline
from keylime_tenant.people import policies_in_force
from keylime_tenant.standing import Standing, circumstances, standing_of
from keylime_tenant.terminal import ago, moment
from keylime_tenant.told_status import ToldStatus
from keylime_tenant.why import Case, next_commands

SHOWN_EVENTS = 200


@dataclass(frozen=True, slots=True)
class Fact:
    """A name and what it is."""

    name: str
    value: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class FindingView:
    """One finding: what it is called, what it means, and what was seen where."""

    title: str
    explanation: str
    facts: Sequence[Fact]
    hint: str


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One event of the timeline."""

    at: str
    headline: str
    style: str
    details: Sequence[str]


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate of a machine, as far as it could be read."""

    title: str
    facts: Sequence[Fact]


@dataclass(frozen=True, slots=True)
class MachineAction:
    """What a person can do, each behind a page that asks again."""

    word: str
    href: str


@dataclass(frozen=True, slots=True)
class MachinePage:
    """All of it. `standing` is None for a machine that the verifier does not have any more."""

    agent_id: str
    href: str
    standing: Standing | None
    since: str
    facts: Sequence[Fact]
    findings: Sequence[FindingView]
    left_off: int
    not_acceptable: Sequence[str]
    commands: Sequence[str]
    acts: Sequence[MachineAction]
    timeline: Sequence[TimelineEntry]
    older: int  # events that are not shown
    certificates: Sequence[Certificate]
    growth: Sparkline | None


@dataclass(frozen=True, slots=True)
class ReadCertificate:
    """A certificate of the registrar's record; None are the dates of one that cannot be read."""

    title: str
    subject: str
    issuer: str
    ends: datetime | None


def machine_page(
    case: Case | None,
    agent_id: str,
    events: Sequence[HistoryEvent],
    certificates: Sequence[ReadCertificate],
    now: float,
    growth: tuple[float, Sequence[int]] | None = None,
) -> MachinePage:
    """The page of a machine: `case` is None when it was deleted, and only its history is left.

    `growth` are the lengths of its IMA list since a time, in epoch seconds.
    """
    shown = events[-SHOWN_EVENTS:]
    return MachinePage(
        agent_id=printable(agent_id),
        href=machine_href(agent_id),
        standing=None if case is None else standing_of(case.status),
        since=""
        if case is None or case.fall is None
        else f"{moment(case.fall.at)}, {ago(case.fall.at, now)}",
        facts=[] if case is None else [*_facts(case.status, now)],
        findings=[] if case is None else [finding_view(finding) for finding in case.findings],
        left_off=0 if case is None else case.left_off,
        not_acceptable=[] if case is None else [*refusals(case.findings)],
        commands=[] if case is None else next_commands(case),
        acts=[] if case is None else [*_acts(case)],
        timeline=[_entry(event) for event in reversed(shown)],
        older=len(events) - len(shown),
        certificates=[_certificate(one, now) for one in certificates],
        growth=None
        if growth is None
        else sparkline(growth[1], f"entries of its IMA list since {moment(growth[0])}"),
    )


def finding_view(finding: FindingSummary) -> FindingView:
    """A finding as it is laid out."""
    facts = [
        ("path", finding.path),
        ("entry of the list", None if finding.log_index is None else str(finding.log_index)),
        ("measured", finding.observed),
        *(("the policy lists", digest) for digest in finding.expected),
        ("rule", finding.rule),
        ("policy", finding.policy),
    ]
    return FindingView(
        title=f"{printable(finding.event_id)} ({printable(finding.severity)})",
        explanation=printable(finding.explanation),
        facts=[Fact(name, printable(value)) for name, value in facts if value],
        hint=printable(finding.hint or ""),
    )


def refusals(findings: Sequence[FindingSummary]) -> Iterator[str]:
    """Findings that no policy should list, and why."""
    for finding, reason in amendment(findings).refused:
        if not finding.event_id.startswith("internal."):
            yield f"{printable(finding.path or finding.event_id)}: {printable(reason)}"


def acceptable(findings: Sequence[FindingSummary]) -> list[str]:
    """The paths whose digests a policy could list, each once."""
    asked = amendment(findings)
    return sorted({path for names in asked.added.values() for path in names})


def _facts(status: ToldStatus, now: float) -> Iterator[Fact]:
    yield Fact("last pass", ago(status.last_successful_attestation, now))
    yield Fact("passes", "?" if status.attestation_count is None else str(status.attestation_count))
    if status.ip:
        yield Fact("address", f"{printable(status.ip)}:{status.port}")
    for text in policies_in_force(status) or ("no policy: nothing but its TPM is judged",):
        yield Fact("held to", text)
    yield Fact("measured boot", *_boot(status))
    if status.ima_entries:  # after a fall the list is judged from its beginning again
        yield Fact("IMA list", f"{status.ima_entries} entries judged since it was started")
    if status.verifier_id:
        yield Fact("verifier", printable(status.verifier_id))
    for text in circumstances(status):
        yield Fact("note", text, "doubtful")


def _boot(status: ToldStatus) -> tuple[str, str]:
    """What is known of how it was started, and its style."""
    reboots = f", rebooted {status.reboots} times" if status.reboots else ""
    if not status.has_mb_refstate:
        return f"not judged: no policy for it{reboots}", "quiet"
    boot = [finding for finding in status.findings if finding.event_id.startswith("measured_boot")]
    if boot:
        count = "1 finding" if len(boot) == 1 else f"{len(boot)} findings"
        return f"not as its policy demands, {count}{reboots}", "bad"
    if not status.passes:
        return f"not judged yet{reboots}", "doubtful"
    return f"as its policy demands, when it passed last{reboots}", "good"


def _acts(case: Case) -> Iterator[MachineAction]:
    standing = standing_of(case.status)
    if acceptable(case.findings):
        yield MachineAction("accept", machine_href(case.agent_id, "accept"))
    if standing in (Standing.FAILED, Standing.STOPPED):
        yield MachineAction("reactivate", machine_href(case.agent_id, "reactivate"))
    if standing is not Standing.STOPPED:
        yield MachineAction("stop", machine_href(case.agent_id, "stop"))
    yield MachineAction("delete", machine_href(case.agent_id, "delete"))


def _entry(event: HistoryEvent) -> TimelineEntry:
    return TimelineEntry(
        moment(event.at), history.headline(event), history.style(event), tuple(history.details(event))
    )


def _certificate(read: ReadCertificate, now: float) -> Certificate:
    facts = [Fact("of", printable(read.subject)), Fact("issued by", printable(read.issuer))]
    if read.ends is None:
        facts = [Fact("", "cannot be read", "doubtful")]
    else:
        has_ended = read.ends <= datetime.fromtimestamp(now, UTC)
        facts.append(Fact("ends", read.ends.strftime("%Y-%m-%d"), "bad" if has_ended else ""))
    return Certificate(read.title, [fact for fact in facts if fact.value])
