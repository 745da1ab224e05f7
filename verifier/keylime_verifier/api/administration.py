"""What an administrator's call has changed, in words for one line of the log: no secrets, no long texts."""

import msgspec

from keylime.messages.verifier import AddAgentRequest, UpdateAgentRequest, UpdatedAgent

_NOT_SHOWN = frozenset(
    {"tpm_policy", "meta_data"}
)  # long, and what is in them is the administrators' own affair
_DIGITS = 12
_MOST = 80  # characters of a value


def describe_addition(request: AddAgentRequest) -> str:
    """What a new agent is held to, and where it is."""
    at = f"at {_shown(request.cloudagent_ip)} port {_shown(request.cloudagent_port)}"
    parts = ["attests by itself" if request.attestation_mode == "push" else at]
    for title, text, name in (
        ("runtime policy", request.runtime_policy, request.runtime_policy_name),
        ("measured boot policy", request.mb_policy, request.mb_policy_name),
    ):
        if name:
            parts.append(f"{title} {_shown(name)}")
        elif text:
            parts.append(f"a {title} of its own")
    if request.v:
        parts.append("a payload")
    return ", ".join(parts)


def describe_update(request: UpdateAgentRequest, updated: UpdatedAgent) -> str:
    """Each member of the enrolment that is another one now, from what to what."""
    before, after = (msgspec.structs.asdict(summary) for summary in (updated.before, updated.after))
    parts = [
        name if name in _NOT_SHOWN else f"{name} {_value(name, before[name])} -> {_value(name, after[name])}"
        for name in before
        if before[name] != after[name]
    ]
    if not isinstance(request.payload, msgspec.UnsetType):
        parts.append("payload")
    return ", ".join(parts) or "nothing changed; it is attested anew"


def _value(name: str, value: object) -> str:
    return value[:_DIGITS] if isinstance(value, str) and name.endswith("_hash") else _shown(value)


def _shown(value: object) -> str:
    return ascii(value)[:_MOST]
