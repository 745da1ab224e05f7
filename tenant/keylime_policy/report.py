"""A judgement for programs (JSON) and for people (blocks and a table)."""

from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from keylime.config.options import TABLES
from keylime.findings.explain import joined, summarise_finding, terminal_lines
from keylime.findings.severity import SeverityPolicy
from keylime.messages.verifier import FindingSummary
from keylime.tpm.pcr import IMA_PCR
from keylime_policy.json_documents import Appraisal, BootNumbers, ImaNumbers, rendered
from keylime_policy.log_facts import BootFacts, ImaFacts
from keylime_policy.offline import Conclusion, OfflineJudgement

_COLOURS = {
    Conclusion.ACCEPTED: "bold green",
    Conclusion.REJECTED: "bold red",
    Conclusion.INCOMPLETE: "bold yellow",
}


def default_severities() -> SeverityPolicy:
    """The severities that a verifier gives without any configuration of its own."""
    options = TABLES["verifier"].by_key()
    labels: Any = options["verifier", "severity_labels"].default
    rules: Any = options["verifier", "severity_policy"].default
    return SeverityPolicy(labels, rules)


def json_report(judgement: OfflineJudgement, severities: SeverityPolicy) -> str:
    """The judgement as one JSON document, with a final newline."""
    ima, boot = judgement.ima, judgement.boot
    return rendered(
        Appraisal(
            verdict=judgement.outcome.value,
            reason=judgement.reason,
            findings=[
                summarise_finding(finding, severities.severity_of(finding).label)
                for finding in judgement.findings
            ],
            notes=list(judgement.notes),
            not_checked=list(judgement.not_checked),
            ima=None if ima is None else _ima_numbers(ima),
            boot=None if boot is None else _boot_numbers(boot),
        )
    )


def _ima_numbers(ima: ImaFacts) -> ImaNumbers:
    ends = {bank.label: value.hex() for bank, value in ima.pcr10.items()}
    return ImaNumbers(entries=ima.entries, violations=ima.violations, pcr10=ends)


def _boot_numbers(boot: BootFacts) -> BootNumbers:
    return BootNumbers(
        {
            bank.label: {str(index): value.hex() for index, value in sorted(values.items())}
            for bank, values in boot.pcrs.items()
        }
    )


def print_report(judgement: OfflineJudgement, severities: SeverityPolicy, stdout: TextIO) -> None:
    """Writes the judgement for a person: a block for each finding, then the summary."""
    console = Console(file=stdout, highlight=False)
    for number, finding in enumerate(joined(judgement.findings, severities.severity_of), 1):
        summary = summarise_finding(finding, severities.severity_of(finding).label)
        for line in _block(number, summary):
            console.print(line, soft_wrap=True)
        console.print()
    rows = list(_summary(judgement))
    if console.is_terminal:
        table = Table(show_header=False)
        table.add_column()
        table.add_column(overflow="fold")  # digests are long, and worthless when cut
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        console.print(table)
    else:
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            console.print(Text(f"{name:{width}}  {value}"), soft_wrap=True)
    console.print(Text(_headline(judgement), style=_COLOURS[judgement.outcome]), soft_wrap=True)


def _block(number: int, finding: FindingSummary) -> Iterator[Text]:
    yield Text(f"{number}. {finding.event_id} ({finding.severity})", style="bold")
    for line in terminal_lines(finding):
        yield Text(f"   {line}")


def _summary(judgement: OfflineJudgement) -> Iterator[tuple[str, str]]:
    yield "quote", judgement.quoted or "none"
    ima, boot = judgement.ima, judgement.boot
    if ima is not None:
        yield "IMA list", f"{ima.entries} entries, {ima.violations} violations"
        for bank, value in ima.pcr10.items():
            yield f"PCR {IMA_PCR} ({bank.label})", value.hex()
    if boot is not None:
        yield "boot log", f"{boot.events} events, banks {', '.join(bank.label for bank in boot.pcrs)}"
    for note in judgement.notes:
        yield "note", note
    for text in judgement.not_checked:
        yield "not checked", text


def _headline(judgement: OfflineJudgement) -> str:
    if judgement.outcome is Conclusion.INCOMPLETE:
        return f"INCOMPLETE: {judgement.reason}; a verifier would ask for the whole evidence once more"
    if judgement.outcome is Conclusion.ACCEPTED:
        return "ACCEPTED" if judgement.quoted else "ACCEPTED as far as logs alone can tell"
    count = len(judgement.findings) + judgement.omitted
    return f"REJECTED: {count} finding{'' if count == 1 else 's'}"
