"""Whether an agent passes, as a verifier's status says it. Pure."""

import enum
from collections.abc import Mapping
from typing import Any

from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime_tenant.errors import CommandFailed
from keylime_tenant.standing import remarks, state_text

_FAILED = {
    text
    for state in (OperationalState.FAILED, OperationalState.INVALID_QUOTE, OperationalState.TENANT_FAILED)
    for text in (int(state), state.text)
}


class FirstVerdict(enum.Enum):
    """What is known of an agent."""

    PASSED = "passed"
    FAILED = "failed"
    OPEN = "not judged yet"


def standing(status: Mapping[str, Any], passes_before: int = 0) -> FirstVerdict:
    """How an agent stands; passes count only beyond the first `passes_before`.

    A verdict that its verifier could not write yet is open, whatever it will be.
    """
    told = status.get("attestation_status")
    if told == "FAIL" or (told is None and status.get("operational_state") in _FAILED):
        return FirstVerdict.FAILED
    count = status.get("attestation_count")
    has_passed = isinstance(count, int) and count > passes_before
    return FirstVerdict.PASSED if has_passed and told in ("PASS", None) else FirstVerdict.OPEN


def failure(agent_id: AgentId, status: Mapping[str, Any]) -> CommandFailed:
    """The error for an agent that failed, with the reasons that its verifier gives."""
    reasons = "; ".join(line.strip() for line in remarks(status))
    state = state_text(status.get("operational_state"))
    return CommandFailed(
        f"agent {agent_id} failed its attestation ({state}): {reasons or 'no reason is told'}"
    )
