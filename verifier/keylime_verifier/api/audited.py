"""What the history is told of a call of an administrator that was refused."""

from keylime.http.refused_calls import RefusedCall
from keylime.identifiers import AgentId
from keylime_verifier.agents.events import Actor, EventKind, Occurrence, policy_key
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME
from keylime_verifier.database.history import new_token

_POLICIES = {"allowlists": RUNTIME, "mbpolicies": MEASURED_BOOT}


def refused_event(call: RefusedCall) -> Occurrence:
    """The event, about the agent or the policy that the call named."""
    kind = _POLICIES.get(call.path.strip("/").partition("/")[0])
    name, agent_id = call.parameters.get("name"), call.parameters.get("agent_id")
    return Occurrence(
        token=new_token(),
        kind=EventKind.REFUSED,
        agent_id=None if agent_id is None else AgentId(agent_id),
        policy=policy_key(kind, name) if kind is not None and name is not None else None,
        actor=Actor(call.caller, call.request_id),
        details=call.details(),
    )
