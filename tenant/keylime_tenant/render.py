"""What an operator sees: lines that scripts search, a JSON document for programs, a table for people."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keylime.appraisal.explain import terminal_lines
from keylime.appraisal.findings import printable
from keylime.messages.verifier import FindingSummary, OperationalState

JsonObject = Mapping[str, Any]

_SHOWN_FINDINGS = 5


class Output:
    """The one place that writes for the operator.

    Without `as_json`, results go through the `keylime.tenant` logger to stdout, in lines that existing
    scripts search, and a table to stderr when that is a terminal. With it, stdout gets one JSON document.
    """

    def __init__(
        self,
        log: logging.Logger,
        *,
        as_json: bool,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self._log = log
        self._as_json = as_json
        self._stdout = stdout or sys.stdout
        self._console = Console(file=stderr or sys.stderr, highlight=False)
        self._document: object = None

    def info(self, message: str, *values: object) -> None:
        """One line of the log at INFO."""
        self._log.info(message, *values)

    def warning(self, message: str, *values: object) -> None:
        """One line of the log at WARNING."""
        self._log.warning(message, *values)

    def result(self, document: object) -> None:
        """The result of the command for `--json`; a later one replaces it, `finish` prints it."""
        self._document = document

    def failed(self, reason: str) -> None:
        """Makes `reason` the result when the command ended before it had one."""
        if self._document is None:
            self._document = {"error": reason}

    def literal(self, value: object) -> None:
        """`value` on stdout, outside the log: JSON after its heading, answers as the text of a dictionary."""
        if not self._as_json:
            print(value, file=self._stdout, flush=True)

    def listing(self, heading: str, document: JsonObject) -> None:
        """`heading` and, on the next line, `document` as JSON; it is also the result."""
        self._log.info("%s", heading)
        self.literal(json.dumps(document))
        self.result(document)

    def table(self, table: Table) -> None:
        """`table` for a person; nothing where stderr is not a terminal or a program reads stdout."""
        if self._console.is_terminal and not self._as_json:
            self._console.print(table)

    def finish(self) -> None:
        """The JSON document, when it was asked for."""
        if self._as_json:
            print(json.dumps({} if self._document is None else self._document), file=self._stdout)


def worded_status(status: JsonObject) -> dict[str, Any]:
    """A verifier's status object with the operational state in words, other fields untouched."""
    return {**status, "operational_state": state_text(status.get("operational_state"))}


def state_text(state: object) -> object:
    """The words for `state`; anything that is not a known number is returned as it is."""
    if isinstance(state, int) and state in OperationalState.__members__.values():
        return OperationalState(state).text
    return state


def agents_table(statuses: Mapping[str, JsonObject]) -> Table:
    """One line for each agent, and the reasons of the last rejection below those that have some."""
    table = Table("agent", "state", "passed", "last pass", "address", "remarks")
    for agent_id, status in statuses.items():
        table.add_row(
            Text(agent_id),
            Text(str(state_text(status.get("operational_state")))),
            Text(str(status.get("attestation_count", "?"))),
            Text(moment(status.get("last_successful_attestation"))),
            Text(f"{status.get('ip')}:{status.get('port')}"),
            Text("\n".join(remarks(status))),
        )
    return table


def remarks(status: JsonObject) -> list[str]:
    """What a person should know about an agent's status: silence, findings with their reasons, reboots."""
    lines = []
    if status.get("unreachable_since"):
        lines.append(f"unreachable since {moment(status['unreachable_since'])}")
    given = status.get("last_findings")
    findings = given if isinstance(given, list) else []
    for finding in findings[:_SHOWN_FINDINGS]:
        lines.extend(_finding_lines(finding))
    if len(findings) > _SHOWN_FINDINGS:
        lines.append(f"and {len(findings) - _SHOWN_FINDINGS} more findings: --json shows them")
    if not findings and status.get("last_event_id"):
        lines.append(f"last failure: {status['last_event_id']}")
    if status.get("reboots"):
        lines.append(f"rebooted {status['reboots']} times")
    return lines


def _finding_lines(finding: object) -> list[str]:
    try:
        summary = msgspec.convert(finding, FindingSummary)
    except msgspec.ValidationError:  # of a verifier that tells it in another form
        return [printable(json.dumps(finding))]
    title = f"{printable(summary.event_id)} ({printable(summary.severity)})"
    return [title, *(f"  {line}" for line in terminal_lines(summary))]


def names_table(title: str, names: Sequence[str]) -> Table:
    """A table of one column."""
    table = Table(title)
    for name in names:
        table.add_row(Text(name))
    return table


def moment(epoch_s: object) -> str:
    """`epoch_s` in UTC for people; "never" for 0, null or nonsense."""
    if not isinstance(epoch_s, int | float) or epoch_s <= 0 or epoch_s > 253402300799:
        return "never"
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
