"""What may be kept under a name: policies as administrators send them, checked. Pure."""

from dataclasses import dataclass

from msgspec import UnsetType

from keylime.errors import PolicyError
from keylime.ima.runtime_policy import JUDGES_NOTHING, PolicyHash
from keylime.messages.verifier import MeasuredBootPolicyRequest, RuntimePolicyRequest
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_verifier.policies.demands import CompileBootPolicy
from keylime_verifier.policies.runtime import accept_runtime_policy


@dataclass(frozen=True, slots=True)
class PolicyContent:
    """What is kept under a name: the texts as they came, checked; `remark` is for whoever sent them."""

    text: str
    tpm_policy: str | None = None
    remark: str | None = None
    replaces: str | None = None  # the SHA-256 of the only text that it may replace
    policy_hash: PolicyHash | None = None  # of a runtime policy


def check_runtime_policy(request: RuntimePolicyRequest, *, signature_required: bool) -> PolicyContent:
    """What `request` asks to keep. Raises MalformedMessage, PolicyError, NotApproved."""
    if request.tpm_policy:
        TpmPolicy.from_client(request.tpm_policy)
    policy = accept_runtime_policy(
        request.runtime_policy, request.runtime_policy_key, signature_required=signature_required
    )
    remark = None if policy.demands_ima else JUDGES_NOTHING
    replaces = None if isinstance(request.replaces, UnsetType) else request.replaces
    return PolicyContent(policy.text, request.tpm_policy or None, remark, replaces, policy.policy_hash)


def check_boot_policy(request: MeasuredBootPolicyRequest, compile_policy: CompileBootPolicy) -> PolicyContent:
    """What `request` asks to keep. Raises PolicyError."""
    try:
        policy = compile_policy(request.mb_policy)
    except PolicyError as error:
        raise PolicyError(f"mb_policy: {error}") from error
    if policy is None:
        # Under a name that is in use, it would switch measured boot off for all who use it.
        raise PolicyError("mb_policy: expected a reference state, got nothing or null")
    return PolicyContent(request.mb_policy)
