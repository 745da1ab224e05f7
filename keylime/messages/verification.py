"""Bodies of the verifier's API about named policies and about evidence at hand (2.x)."""

from typing import Any

import msgspec


class RuntimePolicyNames(msgspec.Struct, frozen=True):
    """Results of `GET /allowlists/`. The blank in the key is what clients of the field look for."""

    names: list[str] = msgspec.field(name="runtimepolicy names")


class MeasuredBootPolicyNames(msgspec.Struct, frozen=True):
    """Results of `GET /mbpolicies/`. The blank in the key is what clients of the field look for."""

    names: list[str] = msgspec.field(name="mbpolicy names")


class NamedRuntimePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Results of `GET /allowlists/{name}`; `runtime_policy` is the text as it was given, not base64.

    `tmp_policy` is spelled so, and always null: clients of the field take a `tpm_policy` beside it for the
    same member given twice. The TPM policy is stored for agents that are added with the named policy.
    """

    name: str
    tmp_policy: None = None
    runtime_policy: str


class NamedMeasuredBootPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Results of `GET /mbpolicies/{name}`; `mb_policy` is the text as it was given."""

    name: str
    mb_policy: str


class PolicyVersion(msgspec.Struct, frozen=True):
    """One version of a named policy. Null is what an earlier release did not note."""

    version: int
    sha256: str  # of the text, as it was given
    at: int | None  # when it was stored, in epoch seconds
    actor: str | None  # subject and serial number of the certificate
    is_current: bool


class PolicyVersions(msgspec.Struct, frozen=True, kw_only=True):
    """Results of `GET /allowlists/{name}/versions` and the same of `/mbpolicies`, the newest first.

    `agents` are the ids of those that use the policy, which is its current version; `left_off` counts those
    beyond the limit.
    """

    name: str
    versions: list[PolicyVersion]
    agents: list[str]
    left_off: int


class PolicyVersionText(msgspec.Struct, frozen=True):
    """Results of `GET /allowlists/{name}/versions/{version}` and the same of `/mbpolicies`."""

    name: str
    version: int
    text: str


class RestoreRequest(msgspec.Struct, frozen=True):
    """`POST .../versions/{version}/restore`: base64 PEM key of a runtime policy that is signed."""

    runtime_policy_key: str | None = None


class IdentityReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Results of `GET /verify/identity`: 1 when the quote is the agent's, else 0 and why."""

    valid: int
    reason: str | None = None


class TpmEvidence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Evidence at hand and the policies to hold it to: at least one policy, and the first five fields.

    Keys are base64 of TPM2B_PUBLIC, `mb_log` and `os_log` are base64; the policies are JSON texts, as is none
    of the rest.
    That fields are there is checked by their reader, who answers as clients of the field expect.
    """

    quote: str | None = None
    nonce: str | None = None
    hash_alg: str | None = None
    tpm_ek: str | None = None
    tpm_ak: str | None = None
    tpm_policy: str | None = None
    runtime_policy: str | None = None
    mb_policy: str | None = None
    ima_measurement_list: str | None = None
    mb_log: str | None = None
    os_log: str | None = None


class EvidenceRequest(msgspec.Struct, frozen=True):
    """`POST /verify/evidence` since 2.5; before, the fields of `data` are the body."""

    type: str | None = None
    data: TpmEvidence | None = None


class EvidenceFailure(msgspec.Struct, frozen=True):
    """One reason not to accept the evidence: an event id and its context."""

    type: str
    context: dict[str, Any]


class EvidenceReply(msgspec.Struct, frozen=True, kw_only=True):
    """Results of `POST /verify/evidence` since 2.5; `claims` is what was proven, when it is valid.

    Of a long document it has "sha256:" and the digest in hex.
    """

    valid: bool
    claims: TpmEvidence = TpmEvidence()
    failures: list[EvidenceFailure]


class EvidenceReply24(msgspec.Struct, frozen=True):
    """The same up to 2.4: a number in the place of the boolean, and no claims."""

    valid: int
    failures: list[EvidenceFailure]
