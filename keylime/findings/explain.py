"""Findings in words: the line of a log, the lines of a terminal, the summary that travels between them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from keylime.findings.finding import Finding, printable
from keylime.messages.verifier import FindingSummary

_SHOWN_EXPECTED = 4
_ABOUT_PCR = re.compile(r".*_pcr_([0-9]{1,2})")


def summarise_finding(finding: Finding, severity_label: str) -> FindingSummary:
    """What of `finding` is stored, sent to operators' tools and shown there."""
    return FindingSummary(
        event_id=finding.event_id,
        severity=severity_label,
        explanation=finding.explanation,
        path=finding.path,
        log_index=finding.log_index,
        observed=finding.observed,
        expected=list(finding.expected),
        rule=finding.rule,
        policy=finding.policy,
        hint=finding.hint,
    )


def joined(
    findings: Iterable[Finding], severity: Callable[[Finding], object] = lambda _: None
) -> Iterator[Finding]:
    """`findings`, those that say the same of several PCRs made one, which names all of these.

    Only what has the same `severity` is. For people: severity rules and peers get each by itself.
    """
    groups: dict[object, list[Finding]] = {}
    for number, finding in enumerate(findings):
        index = _pcr_of(finding)
        key = (
            number
            if index is None
            else (_without(index, finding), finding.hint, finding.policy, severity(finding))
        )
        groups.setdefault(key, []).append(finding)
    for first, *others in groups.values():
        yield _joined(first, others) if others else first


def _joined(first: Finding, others: Sequence[Finding]) -> Finding:
    numbers = ", ".join(str(_pcr_of(finding)) for finding in (first, *others))
    text = first.explanation.replace(f"PCR {_pcr_of(first)}", f"PCR {numbers}", 1)
    is_equal = all(finding.observed == first.observed for finding in others)
    return replace(first, explanation=text, observed=first.observed if is_equal else None)


def _pcr_of(finding: Finding) -> int | None:
    """The PCR that `finding` is about, if it is about one and says nothing else that others would not."""
    match = _ABOUT_PCR.fullmatch(finding.event_id)
    if match is None or finding.expected or finding.rule is not None:
        return None
    return int(match[1]) if f"PCR {match[1]}" in finding.explanation else None


def _without(index: int, finding: Finding) -> tuple[str, str]:
    event = finding.event_id.removesuffix(str(index))
    return event, finding.explanation.replace(f"PCR {index}", "PCR", 1)


def log_text(finding: Finding, headline: str | None = None) -> str:
    """One line for a log, on one line whatever the evidence holds: `headline` (else the explanation), then
    where and by which rule, then what to do.
    """
    details = []
    if finding.log_index is not None:
        details.append(f"entry {finding.log_index}")
    if finding.rule is not None:
        details.append(_rule_text(finding.rule, finding.policy))
    text = headline or finding.explanation
    if details:
        text = f"{text} [{', '.join(details)}]"
    if finding.hint is not None:
        text = f"{text}; hint: {finding.hint}"
    return printable(text)


def terminal_lines(summary: FindingSummary) -> Iterator[str]:
    """The lines below a finding's title, for a person at a terminal."""
    if summary.path is not None:
        yield f"path      {printable(summary.path)}"
    if summary.log_index is not None:
        yield f"entry     {summary.log_index}"
    if summary.observed is not None:
        yield f"observed  {printable(summary.observed)}"
    for position, value in enumerate(summary.expected[:_SHOWN_EXPECTED]):
        yield f"{'' if position else 'expected':8}  {printable(value)}"
    if len(summary.expected) > _SHOWN_EXPECTED:
        yield f"{'':8}  and {len(summary.expected) - _SHOWN_EXPECTED} more"
    if summary.rule is not None:
        yield f"rule      {printable(_rule_text(summary.rule, summary.policy))}"
    yield printable(summary.explanation)
    if summary.hint is not None:
        yield f"hint: {printable(summary.hint)}"


def _rule_text(rule: str, policy: str | None) -> str:
    return rule if policy is None else f"{rule} of {policy}"
