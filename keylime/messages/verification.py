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

    `tmp_policy` is spelled so, and always null, for clients of the field; what was stored is in `tpm_policy`.
    """

    name: str
    tmp_policy: None = None
    tpm_policy: str | None = None
    runtime_policy: str


class NamedMeasuredBootPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Results of `GET /mbpolicies/{name}`; `mb_policy` is the text as it was given."""

    name: str
    mb_policy: str


class IdentityReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Results of `GET /verify/identity`: 1 when the quote is the agent's, else 0 and why."""

    valid: int
    reason: str | None = None


class TpmEvidence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Evidence at hand and the policies to hold it to: at least one policy, and the first five fields.

    Keys are base64 of TPM2B_PUBLIC, `mb_log` is base64; the policies are JSON texts, as is none of the rest.
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


class EvidenceRequest(msgspec.Struct, frozen=True):
    """`POST /verify/evidence` since 2.5; before, the fields of `data` are the body."""

    type: str | None = None
    data: TpmEvidence | None = None


class EvidenceFailure(msgspec.Struct, frozen=True):
    """One reason not to accept the evidence: an event id and its context."""

    type: str
    context: dict[str, Any]


class EvidenceReply(msgspec.Struct, frozen=True, kw_only=True):
    """Results of `POST /verify/evidence` since 2.5; `claims` repeats what was verified, when it is valid."""

    valid: bool
    claims: TpmEvidence = TpmEvidence()
    failures: list[EvidenceFailure]


class EvidenceReply24(msgspec.Struct, frozen=True):
    """The same up to 2.4: a number in the place of the boolean, and no claims."""

    valid: int
    failures: list[EvidenceFailure]
