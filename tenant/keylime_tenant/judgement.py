"""Waiting until a verifier says whether an agent passes."""

import time

from keylime.identifiers import AgentId
from keylime_tenant.errors import CommandFailed, PutOff, Unjudged
from keylime_tenant.first_verdict import FirstVerdict, failure, first_verdict
from keylime_tenant.session import Session

_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.25, 2.0


async def await_judgement(session: Session, agent_id: AgentId, passes_before: int = 0) -> None:
    """With `--wait`: returns when the agent passed. Raises CommandFailed if it failed, Unjudged if late."""
    if session.arguments.wait is None:
        return
    deadline, delay_s = time.monotonic() + session.arguments.wait, _FIRST_LOOK_S
    while True:
        if await _has_passed(session, agent_id, passes_before):
            session.output.said("Agent %s passed its attestation", agent_id)
            return
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            seconds = f"{session.arguments.wait:g} s"
            raise Unjudged(
                f"agent {agent_id} was neither attested nor failed within {seconds}: see -c cvstatus"
            )
        await session.sleep(min(delay_s, left_s))
        delay_s = min(2 * delay_s, _LONGEST_LOOK_S)


async def _has_passed(session: Session, agent_id: AgentId, passes_before: int) -> bool:
    """Whether it has; no is an open verdict. Raises CommandFailed if it failed."""
    try:
        status = await session.verifier.status(agent_id)
    except PutOff:  # asked again, as long as somebody wants to wait
        return False
    if status is None:
        raise CommandFailed(f"{session.verifier.place} does not have agent {agent_id} any more")
    found = first_verdict(status, passes_before)
    if found is FirstVerdict.FAILED:
        raise failure(agent_id, status)
    return found is FirstVerdict.PASSED
