"""Compiles reference states for measured boot: what a machine's event log is held to.

A reference state is an operator's JSON text; which rules read it is decided by the verifier's policy name.
The empty object makes no demands on the content of the log, but the log must still reproduce the quoted
PCRs.
"""

import hashlib
import json
from dataclasses import dataclass

from keylime.appraisal.findings import Finding, JsonValue, policy_version
from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_log import EventLog
from keylime.measured_boot.example import ExampleRules
from keylime.measured_boot.policies import Judge, Objection, PolicyRegistry
from keylime.tpm.pcr import MEASURED_BOOT_PCRS

_SHOWN_OBJECTIONS = 16


@dataclass(frozen=True, slots=True, weakref_slot=True)
class MeasuredBootPolicy:
    """What the log of one or many machines must satisfy. `judge` is None without demands on its content."""

    name: str
    refstate: JsonValue
    required_pcrs: frozenset[int]
    judge: Judge | None
    content_hash: str  # hex SHA-256 of name and text: names this version of the policy

    @property
    def version(self) -> str:
        """The version of the policy, as people are told it."""
        return policy_version(f"measured-boot policy {self.name}", self.content_hash)

    def evaluate(self, log: EventLog, bank: HashAlgorithm) -> tuple[Finding, ...]:
        """What speaks against the content of `log`, judged by the digests of the quoted `bank`.

        The caller has compared the replay of that bank with the quote; without that, nothing here means
        anything.
        """
        objections = self.judge(log, bank) if self.judge is not None else ()
        return (self._finding(objections),) if objections else ()

    def _finding(self, objections: tuple[Objection, ...]) -> Finding:
        reasons = [_describe(objection) for objection in objections[:_SHOWN_OBJECTIONS]]
        if len(objections) > _SHOWN_OBJECTIONS:
            reasons.append(f"and {len(objections) - _SHOWN_OBJECTIONS} more")
        reason = "; ".join(reasons)
        first = objections[0]
        return Finding(
            event_id=f"measured_boot.policy_{self.name}",
            context={
                "context": "The boot log does not satisfy the measured-boot policy",
                "policy": self.name,
                "refstate": self.refstate,
                "reason": reason,
            },
            recoverable=True,
            explanation=f"The machine booted something that the reference state of policy {self.name} does "
            f"not allow: {reason}.",
            log_index=first.event,
            observed=first.observed,
            expected=first.expected,
            rule="reference state",
            policy=self.version,
            hint="if this boot is meant to be good, add it to the reference state",
        )


def built_in_policies() -> PolicyRegistry:
    """A new registry with `accept-all`, `reject-all` and `example`."""
    return PolicyRegistry({"example": ExampleRules()})


def compile_measured_boot_policy(
    refstate_text: str | None, *, policy_name: str, registry: PolicyRegistry
) -> MeasuredBootPolicy | None:
    """The policy for a reference state; None when measured boot is off (no text, or `null`).

    A name that is not registered rejects every log. Raises PolicyError when the text is not JSON, or is not
    what the named rules can use.
    """
    if not refstate_text:
        return None
    refstate = _parse_json(refstate_text)
    if refstate is None:
        return None
    content_hash = hashlib.sha256(f"{policy_name}\0{refstate_text}".encode()).hexdigest()
    if not refstate:
        return MeasuredBootPolicy(policy_name, refstate, MEASURED_BOOT_PCRS, None, content_hash)
    rules = registry.rules(policy_name)
    relevant = rules.get_relevant_pcrs()
    required = MEASURED_BOOT_PCRS & relevant if relevant else MEASURED_BOOT_PCRS
    return MeasuredBootPolicy(policy_name, refstate, required, rules.compile(refstate), content_hash)


def _parse_json(text: str) -> JsonValue:
    try:
        refstate: JsonValue = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"reference state for measured boot is not JSON: {error}") from error
    return refstate


def _describe(objection: Objection) -> str:
    return objection.reason if objection.event is None else f"event {objection.event}: {objection.reason}"
