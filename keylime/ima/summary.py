"""The texts about IMA findings that operators look for in logs."""

from collections import Counter
from collections.abc import Iterable

from keylime.findings.finding import Finding
from keylime.ima.findings import NOT_IN_ALLOWLIST, RUNTIME_POLICY_HASH, EntryFinding


def ima_error_summary(findings: Iterable[Finding]) -> str:
    """One sentence that counts the failed entries by template, in the order of first appearance."""
    modes = Counter(finding.mode for finding in findings if isinstance(finding, EntryFinding))
    if not modes:
        return "IMA ERRORS: The list couldn't be validated as a whole."
    counts = ", ".join(f"{mode} {count}" for mode, count in modes.items())
    return f"IMA ERRORS: Some entries couldn't be validated. Number of failures in modes: {counts}."


def file_warning(finding: Finding) -> str | None:
    """The warning about one file that the policy does not allow; None for findings of another kind."""
    if finding.event_id not in (NOT_IN_ALLOWLIST, RUNTIME_POLICY_HASH):
        return None
    message = finding.context.get("message")
    return message if isinstance(message, str) else None
