"""Whether an agent passes, as a verifier's status says it. Pure."""

import enum

from keylime.identifiers import AgentId
from keylime.messages.verifier import OperationalState
from keylime_tenant.errors import CommandFailed
from keylime_tenant.standing import REJECTED, remarks
from keylime_tenant.told_status import ToldStatus

_FAILED = REJECTED | {OperationalState.TENANT_FAILED}


class FirstVerdict(enum.Enum):
    """What is known of an agent."""

    PASSED = "passed"
    FAILED = "failed"
    OPEN = "not judged yet"


def first_verdict(status: ToldStatus, passes_before: int = 0) -> FirstVerdict:
    """How an agent stands; passes count only beyond the first `passes_before`.

    A verdict that its verifier could not write yet is open, whatever it will be.
    """
    told = status.attestation_status
    if told == "FAIL" or (told is None and status.state in _FAILED):
        return FirstVerdict.FAILED
    has_passed = status.passes > passes_before and told in ("PASS", None)
    return FirstVerdict.PASSED if has_passed else FirstVerdict.OPEN


def failure(agent_id: AgentId, status: ToldStatus) -> CommandFailed:
    """The error for an agent that failed, with the reasons that its verifier gives."""
    reasons = "; ".join(line.strip() for line in remarks(status))
    # The state of an agent that attests by itself is that of the protocol for polled ones: always Get Quote.
    told = status.attestation_status if status.attests_by_itself else status.state_text
    return CommandFailed(
        f"agent {agent_id} failed its attestation ({told}): {reasons or 'no reason is told'}"
    )
