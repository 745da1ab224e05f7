"""What came of a round, for the log and for the history."""

import logging
import time

from keylime.appraisal.verdict import Accepted, Incomplete, Rejected
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.events import (
    EventKind,
    Occurrence,
    has_changed,
    has_other_policies,
    policy_details,
    rebooted,
    state_details,
)
from keylime_verifier.agents.lifecycle import Outcome, Refused, Unreachable, Unusable, WrongKey
from keylime_verifier.agents.progress import MAX_STORED_FINDINGS
from keylime_verifier.agents.records import AgentRecord, HeldVersions
from keylime_verifier.database.history import new_token
from keylime_verifier.polling.findings_log import log_findings

log = logging.getLogger("keylime.verifier")


def events_of(
    before: AgentRecord, after: AgentRecord, outcome: Outcome, held_to: HeldVersions | None
) -> list[Occurrence]:
    """What the history tells of an outcome: nothing of a routine pass."""
    first, then = before.progress, after.progress
    versions = held_to if isinstance(outcome, Accepted | Rejected) else None
    told: list[tuple[EventKind, dict[str, object]]] = []
    if rebooted(first, then):
        told.append((EventKind.REBOOTED, {"reboots": then.checkpoint.reboots}))
    if has_changed(first, then):
        omitted = 0
        if isinstance(outcome, Rejected):  # what is said of several PCRs is one, and counts as each
            omitted = max(len(outcome.findings) - len(then.last_findings), 0) + outcome.omitted
            omitted = omitted if len(then.last_findings) == MAX_STORED_FINDINGS else outcome.omitted
        told.append((EventKind.STATE, state_details(first, after, versions, omitted=omitted)))
    elif has_other_policies(first, then):
        told.append((EventKind.HELD_TO, policy_details(after.enrolment, versions)))
    now = int(time.time())
    return [
        Occurrence(token=new_token(), kind=kind, agent_id=after.agent_id, at=now, details=details)
        for kind, details in told
    ]


def log_outcome(before: AgentRecord, after: AgentRecord, outcome: Outcome) -> None:
    """One line for each change of state, and the reasons of every rejection."""
    agent_id, state = after.agent_id, after.progress.operational_state
    was_given_up = before.progress.operational_state is OperationalState.FAILED
    is_known = was_given_up and after.progress.last_event_id == before.progress.last_event_id
    silence = logging.DEBUG if is_known else logging.WARNING  # said once, not for days
    match outcome:
        case Rejected() as verdict:
            log_findings(agent_id, verdict)
        case Accepted(_, _, notes):
            for note in notes:
                log.info("agent %s: %s", agent_id, note)
            if after.progress.checkpoint.reboots > before.progress.checkpoint.reboots:
                log.info("agent %s: rebooted, attested again from the first IMA entry", agent_id)
        case Incomplete(reason):
            log.info("agent %s: no verdict (%s), asking again", agent_id, reason)
        case Unreachable(reason):
            log.log(silence, "agent %s: not reachable: %s", agent_id, reason)
        case WrongKey(reason):
            log.log(silence, "agent %s: %s", agent_id, reason)
        case Unusable(reason):
            log.log(silence, "agent %s: no answer that can be used: %s", agent_id, reason)
        case Refused(reason):
            log.log(logging.DEBUG if was_given_up else logging.ERROR, "agent %s: %s", agent_id, reason)
        case _:
            pass
    if state is not before.progress.operational_state:
        log.info("agent %s: %s -> %s", agent_id, before.progress.operational_state.text, state.text)
