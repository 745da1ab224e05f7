"""Findings in words: the line of a log, the lines of a terminal, the summary that travels between them."""

from collections.abc import Iterator

from keylime.appraisal.findings import Finding, printable
from keylime.messages.verifier import FindingSummary

_SHOWN_EXPECTED = 4


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
