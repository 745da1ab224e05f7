"""Compiles reference states for measured boot: what a machine's event log is held to.

A reference state is an operator's JSON text; which rules read it is decided by the verifier's policy name.
The empty object makes no demands on the content of the log, but the log must still reproduce the quoted
PCRs.
"""

import hashlib
import json
from dataclasses import dataclass

from keylime.documents.strict_json import load_document
from keylime.errors import PolicyError
from keylime.findings.finding import Finding, JsonValue, policy_version
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.boot_reading import Chain
from keylime.measured_boot.component_rules import ComponentRules
from keylime.measured_boot.event_log import EventLog
from keylime.measured_boot.example import ExampleRules
from keylime.measured_boot.pcr_sets import MEMBER, NAMES, PcrSet, explained_pcrs
from keylime.measured_boot.policies import Judge, Objection, PolicyRegistry
from keylime.nesting import is_too_deep

_SHOWN_OBJECTIONS = 16


@dataclass(frozen=True, slots=True, weakref_slot=True)
class MeasuredBootPolicy:
    """What the logs of one or many machines must satisfy. `judge` is None without demands on their content.

    `required_pcrs` must be quoted and explained, those of them that are `if_logged` only where the operating
    system's own log comes.
    """

    name: str
    refstate: JsonValue
    required_pcrs: frozenset[int]
    judge: Judge | None
    content_hash: str  # hex SHA-256 of name and text: names this version of the policy
    if_logged: frozenset[int] = frozenset()

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
    """A new registry with `accept-all`, `reject-all`, `example`, `components`, and one for each chain."""
    chains = {chain.value: ComponentRules(chain) for chain in Chain}
    return PolicyRegistry({"example": ExampleRules(), "components": ComponentRules(), **chains})


def compile_measured_boot_policy(
    refstate_text: str | None,
    *,
    policy_name: str,
    registry: PolicyRegistry,
    explained: PcrSet = PcrSet.AUTOMATIC,
    is_stored: bool = False,
) -> MeasuredBootPolicy | None:
    """The policy for a reference state; None when measured boot is off (no text, or `null`).

    A name that is not registered rejects every log, as `reject-all` does, whatever the reference state. Which
    PCRs the logs must explain is `explained`, unless the reference state says it for itself.
    Raises PolicyError when the text is not JSON, has a key twice, or is not what the named rules can use.
    One that `is_stored` was accepted long ago, perhaps when a key could be given twice; the last one counts.
    """
    if not refstate_text:
        return None
    refstate = _parse_json(refstate_text, is_stored=is_stored)
    if refstate is None:
        return None
    chosen, demands = _chosen_pcrs(refstate, explained)
    rejects_all = registry.rejects_all(policy_name)
    # What was judged once and accepted must be judged again when the name comes to mean something else.
    meaning = f"{policy_name}\0{refstate_text}" + ("\0reject all" if rejects_all else "")
    if explained is not PcrSet.AUTOMATIC:
        meaning += f"\0{explained.value}"
    content_hash = hashlib.sha256(meaning.encode()).hexdigest()
    judge: Judge | None = None
    relevant: frozenset[int] = frozenset()
    if demands or rejects_all:
        rules = registry.rules(policy_name)
        relevant, judge = rules.get_relevant_pcrs(), rules.compile(demands)
    has_rules = judge is not None and not registry.accepts_all(policy_name)
    pcrs = explained_pcrs(chosen, relevant, has_rules=has_rules)
    return MeasuredBootPolicy(policy_name, refstate, pcrs.required, judge, content_hash, pcrs.if_logged)


def _chosen_pcrs(refstate: JsonValue, otherwise: PcrSet) -> tuple[PcrSet, JsonValue]:
    """Which set of PCRs the reference state chooses, and what it demands beside that."""
    if not isinstance(refstate, dict) or MEMBER not in refstate:
        return otherwise, refstate
    name = refstate[MEMBER]
    if name not in NAMES:
        raise PolicyError(f"reference state for measured boot: {MEMBER} is not one of {', '.join(NAMES)}")
    return PcrSet(name), {key: value for key, value in refstate.items() if key != MEMBER}


def _parse_json(text: str, *, is_stored: bool) -> JsonValue:
    what = "reference state for measured boot"
    if not is_stored:
        strict: JsonValue = load_document(text, what)
        return strict
    if is_too_deep(text):
        raise PolicyError(f"{what} is nested too deeply")
    try:
        refstate: JsonValue = json.loads(text)
    except ValueError as error:
        raise PolicyError(f"{what} is not valid JSON: {error}") from error
    return refstate


def _describe(objection: Objection) -> str:
    return objection.reason if objection.event is None else f"event {objection.event}: {objection.reason}"
