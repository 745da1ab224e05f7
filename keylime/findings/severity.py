"""How grave a finding is: the operator's ordered labels and rules, applied to event ids."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keylime.documents.patterns import compile_expression
from keylime.errors import ConfigError, PolicyError
from keylime.findings.finding import Finding


@dataclass(frozen=True, slots=True)
class Severity:
    """A label with its rank; 0 is the mildest."""

    rank: int
    label: str


@dataclass(frozen=True, slots=True)
class GravestFinding:
    """The first finding of the highest severity: what an operator is told first."""

    finding: Finding
    severity: Severity


class SeverityPolicy:
    """Maps event ids to labels: the first rule whose expression matches the whole id wins.

    No match, or an irrecoverable finding, has the highest label.
    """

    def __init__(self, labels: Sequence[str], rules: Sequence[Mapping[str, object]]) -> None:
        """Raises ConfigError for no labels, a rule without its two texts, or a bad expression."""
        if not labels:
            raise ConfigError("option severity_labels is empty: name at least one label, mildest first")
        self._labels = tuple(Severity(rank, label) for rank, label in enumerate(labels))
        by_label = {severity.label: severity for severity in self._labels}
        self._rules: list[tuple[re.Pattern[str], Severity]] = []
        for number, rule in enumerate(rules, start=1):
            expression, label = rule.get("event_id"), rule.get("severity_label")
            if not isinstance(expression, str) or not isinstance(label, str):
                wanted = "expected event_id and severity_label"
                raise ConfigError(f"option severity_policy, rule {number}: {wanted}")
            try:
                pattern = compile_expression(expression)
            except PolicyError as error:
                raise ConfigError(f"option severity_policy, rule {number}: {error}") from error
            self._rules.append((pattern, by_label.get(label, self.highest)))

    @property
    def highest(self) -> Severity:
        """The gravest label."""
        return self._labels[-1]

    def severity_of(self, finding: Finding) -> Severity:
        """The severity of one finding."""
        if finding.recoverable:
            for pattern, severity in self._rules:
                if pattern.fullmatch(finding.event_id):
                    return severity
        return self.highest

    def gravest(self, findings: Sequence[Finding]) -> GravestFinding:
        """The first finding of the highest severity among `findings`, which must not be empty."""
        rated = [GravestFinding(finding, self.severity_of(finding)) for finding in findings]
        return max(rated, key=lambda each: each.severity.rank)  # max() keeps the first of equals
