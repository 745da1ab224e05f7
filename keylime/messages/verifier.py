"""Bodies of the verifier's API (2.x), and the operational states they carry."""

import enum
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class OperationalState(enum.IntEnum):
    """Where an agent stands in the polling state machine; the value is on the wire and in databases."""

    REGISTERED = 0
    START = 1
    SAVED = 2
    GET_QUOTE = 3
    GET_QUOTE_RETRY = 4
    PROVIDE_V = 5
    PROVIDE_V_RETRY = 6
    FAILED = 7
    TERMINATED = 8
    INVALID_QUOTE = 9
    TENANT_FAILED = 10

    @property
    def text(self) -> str:
        """The words that the tenant prints."""
        return _STATE_TEXTS[self]


_STATE_TEXTS = {
    OperationalState.REGISTERED: "Registered",
    OperationalState.START: "Start",
    OperationalState.SAVED: "Saved",
    OperationalState.GET_QUOTE: "Get Quote",
    OperationalState.GET_QUOTE_RETRY: "Get Quote (retry)",
    OperationalState.PROVIDE_V: "Provide V",
    OperationalState.PROVIDE_V_RETRY: "Provide V (retry)",
    OperationalState.FAILED: "Failed",
    OperationalState.TERMINATED: "Terminated",
    OperationalState.INVALID_QUOTE: "Invalid Quote",
    OperationalState.TENANT_FAILED: "Tenant Quote Failed",
}


# In `attestation_text` of an agent that no policy demands anything of: its passes mean that its TPM is alive.
NOTHING_JUDGED = "nothing judged"
# The same of an agent whose polling an operator ended. The wire's state is that of a quote that a tenant
# refused.
STOPPED_BY_OPERATOR = "stopped by an operator"


class PolicyPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of several runtime policies of an agent. `until` is in epoch seconds; without it, it does not end.

    `has_ended` is told and not asked for.
    """

    name: str
    until: int | None = None
    has_ended: bool = False


class AddAgentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /agents/{id}`. `tpm_policy` and `metadata` are JSON texts, `runtime_policy` is base64."""

    tpm_policy: str
    metadata: str
    ima_sign_verification_keys: str
    revocation_key: str
    accept_tpm_hash_algs: list[str]
    accept_tpm_encryption_algs: list[str]
    accept_tpm_signing_algs: list[str]
    ak_tpm: str
    cloudagent_ip: str | None = None  # of an agent that is polled
    cloudagent_port: int | str | None = None
    mb_policy: str | None
    mb_policy_name: str | None
    runtime_policy: str
    runtime_policy_name: str | None = None
    runtime_policy_key: str | None = None
    # Beside `runtime_policy_name`, which is one of them and does not end: older verifiers know that one only.
    runtime_policies: list[PolicyPart] | UnsetType = UNSET
    # "pull" or "push", which only our own tenants say: see `docs/reference/push-model.md`.
    attestation_mode: str | UnsetType = UNSET
    mtls_cert: str | None = None
    supported_version: str | None = None
    v: str | None = None
    verifier_ip: str | None = None
    verifier_port: int | str | None = None
    # What tenants called the policies before; what stands here would not be looked at, so it is refused.
    allowlist: Any = None
    mb_refstate: Any = None


class UpdateAgentRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`PUT /agents/{id}`: fields of `AddAgentRequest`. What is not there stays, null takes a policy away."""

    tpm_policy: str | UnsetType | None = UNSET
    runtime_policy: str | UnsetType | None = UNSET
    runtime_policy_name: str | UnsetType | None = UNSET
    runtime_policy_key: str | UnsetType | None = UNSET
    runtime_policies: list[PolicyPart] | UnsetType = UNSET
    mb_policy: str | UnsetType | None = UNSET
    mb_policy_name: str | UnsetType | None = UNSET
    ima_sign_verification_keys: str | UnsetType | None = UNSET
    accept_tpm_hash_algs: list[str] | UnsetType = UNSET
    accept_tpm_encryption_algs: list[str] | UnsetType = UNSET
    accept_tpm_signing_algs: list[str] | UnsetType = UNSET
    ak_tpm: str | UnsetType = UNSET
    mtls_cert: str | UnsetType | None = UNSET
    cloudagent_ip: str | UnsetType = UNSET
    cloudagent_port: int | str | UnsetType = UNSET
    verifier_ip: str | UnsetType = UNSET
    verifier_port: int | str | UnsetType = UNSET
    supported_version: str | UnsetType = UNSET
    payload: "NewPayload | UnsetType" = UNSET


class NewPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What comes with another payload, and is replaced as a whole."""

    v: str
    metadata: str = "{}"
    revocation_key: str = ""


class EnrolmentSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is held to. Hashes are SHA-256 of the texts, null where there is none.

    `mtls_key_hash` is that of the public key in `mtls_cert`, which the agent is known by.
    """

    ip: str
    port: int
    mtls_cert_hash: str | None
    mtls_key_hash: str | None = None  # verifiers of before did not tell
    ak_hash: str
    tpm_policy: str
    runtime_policy: str | None
    runtime_policy_hash: str | None
    mb_policy: str | None
    mb_policy_hash: str | None
    ima_sign_verification_keys_hash: str | None
    accept_tpm_hash_algs: list[str]
    accept_tpm_encryption_algs: list[str]
    accept_tpm_signing_algs: list[str]
    has_payload: bool
    meta_data: str
    runtime_policies: list[PolicyPart] | UnsetType = UNSET  # where there are several


class UpdatedAgent(msgspec.Struct, frozen=True):
    """Results of `PUT /agents/{id}`."""

    before: EnrolmentSummary
    after: EnrolmentSummary


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Results of `GET /agents/{id}`, in the order of the wire; `tpm_policy` and `meta_data` are JSON texts.

    Fields after `maximum_attestation_interval` are ours; peers ignore keys they do not know.
    """

    operational_state: int | str | None
    v: str | None
    ip: str | None
    port: int | None
    tpm_policy: str | None
    meta_data: str | None
    has_mb_refstate: int
    has_runtime_policy: int
    accept_tpm_hash_algs: list[str]
    accept_tpm_encryption_algs: list[str]
    accept_tpm_signing_algs: list[str]
    hash_alg: str
    enc_alg: str
    sign_alg: str
    verifier_id: str | None
    verifier_ip: str | None
    verifier_port: int | None
    severity_level: int | None
    last_event_id: str | None
    attestation_count: int
    last_received_quote: int | None
    last_successful_attestation: int | None
    attestation_status: str | None = None
    attestation_period: str | None = None
    maximum_attestation_interval: str | None = None
    last_findings: list["FindingSummary"] = []  # the reasons of the last rejection, for people
    unreachable_since: int | None = None  # epoch seconds; null while the agent answers
    reboots: int = 0
    runtime_policy_name: str | None = None  # null while the agent has none
    mb_policy_name: str | None = None
    attestation_text: str | None = None  # what `attestation_status` is worth, in words
    runtime_policies: list[PolicyPart] | UnsetType = UNSET  # where there are several
    runtime_policy_version: int | UnsetType = UNSET  # the number of the version in force
    mb_policy_version: int | UnsetType = UNSET
    attestation_mode: str | UnsetType = UNSET  # "push" of an agent that attests by itself
    deadline: int | UnsetType | None = UNSET  # of such an agent: until when, in epoch seconds, it passes
    ima_entries: int | UnsetType = UNSET  # judged of its list since its start, under a runtime policy


class FindingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One finding of the last rejected attestation, as operators read it."""

    event_id: str
    severity: str
    explanation: str
    path: str | None = None
    log_index: int | None = None
    observed: str | None = None
    expected: list[str] = []
    rule: str | None = None
    policy: str | None = None  # which version of which policy has the rule
    hint: str | None = None


class VerifierAgents(msgspec.Struct, frozen=True):
    """Results of `GET /agents/`: each id in a list of its own, as clients of the field expect."""

    uuids: list[list[str]]


class RuntimePolicyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST` and `PUT /allowlists/{name}`: base64 policy, base64 PEM key, JSON text of a TPM policy."""

    runtime_policy: str
    runtime_policy_key: str | None = None
    tpm_policy: str | None = None
    # SHA-256 of the text that it was made from, and may replace; a TPM policy that is not given stays then.
    replaces: str | UnsetType = UNSET


class MeasuredBootPolicyRequest(msgspec.Struct, frozen=True):
    """`POST` and `PUT /mbpolicies/{name}`: JSON text of a reference state."""

    mb_policy: str
