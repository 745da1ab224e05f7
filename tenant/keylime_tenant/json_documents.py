"""What each command prints with --json, as types; the published JSON Schema is made of these.

`python -m keylime_tenant.json_documents` writes it.
"""

from typing import Annotated, Any

import msgspec

from keylime.checkup import Examination
from keylime.documents.published_schema import Documents, Failure, published_schema
from keylime.messages.deliveries import Deliveries
from keylime.messages.history import HistoryEvent
from keylime.messages.registrar import RegisteredAgent, RegisteredAgents
from keylime.messages.verification import (
    MeasuredBootPolicyNames,
    NamedMeasuredBootPolicy,
    NamedRuntimePolicy,
    PolicyVersions,
    RuntimePolicyNames,
)
from keylime.messages.verifier import AgentStatus, FindingSummary, VerifierAgents


class Refusal(msgspec.Struct, frozen=True):
    """What a service answered that did not do what was asked."""

    code: Annotated[int, msgspec.Meta(ge=400)]
    status: str
    results: dict[str, Any]


class Answer(msgspec.Struct, frozen=True):
    """A service's answer to an order. 404 stands for what was to be removed and is not there."""

    code: int
    status: str
    results: dict[str, Any]


class Registration(RegisteredAgent, frozen=True, kw_only=True):
    """The registrar's record of an agent, with its state in words."""

    operational_state: str


class RegistrationAnswer(msgspec.Struct, frozen=True):
    """The registrar's record by the agent's id."""

    code: int
    status: str
    results: dict[str, Registration]


class AgentAtBoth(msgspec.Struct, frozen=True):
    """An agent at both services, by its id; empty where a command failed before the verifier told."""

    registrar: dict[str, Registration]
    verifier: dict[str, AgentStatus]


class RuntimePolicyAnswer(msgspec.Struct, frozen=True):
    """The verifier's answer with a runtime policy."""

    code: int
    status: str
    results: NamedRuntimePolicy


class RuntimePolicyNamesAnswer(msgspec.Struct, frozen=True):
    """The verifier's answer with the names of its runtime policies."""

    code: int
    status: str
    results: RuntimePolicyNames


class MeasuredBootPolicyAnswer(msgspec.Struct, frozen=True):
    """The verifier's answer with a measured boot policy."""

    code: int
    status: str
    results: NamedMeasuredBootPolicy


class MeasuredBootPolicyNamesAnswer(msgspec.Struct, frozen=True):
    """The verifier's answer with the names of its measured boot policies."""

    code: int
    status: str
    results: MeasuredBootPolicyNames


class Reactivated(msgspec.Struct, frozen=True):
    """With --state: the ids of those that are attested again, and by id why others are not."""

    reactivated: list[str]
    errors: dict[str, str]


class Reasons(msgspec.Struct, frozen=True, kw_only=True):
    """Why an agent fails. `since` is in epoch seconds, null while nothing speaks against it.

    `next` are command lines, `before` what changed before it fell.
    """

    agent_id: str
    findings: list[FindingSummary]
    findings_left_off: int
    since: int | None
    before: list[HistoryEvent]
    next: list[str]


class Deviation(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what is allowed there. `section` names the rule, `log_index` the entry."""

    path: str | None
    log_index: int | None
    section: str | None
    expected: list[str]
    observed: str | None


class Deviations(msgspec.Struct, frozen=True):
    """An agent's measurements against its policy; `left_off` counts those that are not kept."""

    agent_id: str
    differences: list[Deviation]
    left_off: int


class History(msgspec.Struct, frozen=True):
    """What happened to an agent, the oldest first."""

    agent_id: str
    events: list[HistoryEvent]


class AuditedEvent(HistoryEvent, frozen=True, kw_only=True):
    """An event of the verifiers or of the registrars, as `service` says: each has ids of its own."""

    service: str


class Audit(msgspec.Struct, frozen=True):
    """What administrators did, what was refused to them, what services did; the oldest first."""

    events: list[AuditedEvent]


class Approved(msgspec.Struct, frozen=True):
    """What one new version of a policy allows more: digests by name, by section of the policy."""

    policy: str
    added: dict[str, dict[str, list[str]]]


class Approval(msgspec.Struct, frozen=True):
    """The versions that were stored."""

    agent_id: str
    approved: list[Approved]


class Issuer(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that an EK certificate leads to, and whether it is in the store from now on."""

    subject: str
    sha256: str
    not_after: str
    is_root: bool
    address: str
    stored: bool


class Issuers(msgspec.Struct, frozen=True):
    """The issuers of an agent's EK certificate; none are looked for when it is trusted already."""

    agent_id: str
    trusted: bool
    chain: list[Issuer]


class Served(msgspec.Struct, frozen=True):
    """Where the dashboard was until it was ended; its link, which opens it, is in no document."""

    address: str


_Statuses = dict[str, AgentStatus]  # by agent id

DOCUMENTS: Documents = {
    "add": (_Statuses,),
    "update": (_Statuses,),
    "delete": (Answer,),
    "reactivate": (Answer, Reactivated),
    "approve": (Approval,),
    "trust-issuer": (Issuers,),
    "status": (AgentAtBoth,),
    "cvstatus": (_Statuses,),
    "regstatus": (RegistrationAnswer,),
    "bulkinfo": (_Statuses,),
    "top": (_Statuses,),
    "dashboard": (Served,),
    "cvlist": (VerifierAgents,),
    "reglist": (RegisteredAgents,),
    "why": (Reasons,),
    "diff": (Deviations,),
    "history": (History,),
    "audit": (Audit,),
    "revocations": (Deliveries,),
    "addruntimepolicy": (Answer,),
    "updateruntimepolicy": (Answer,),
    "showruntimepolicy": (RuntimePolicyAnswer,),
    "listruntimepolicy": (RuntimePolicyNamesAnswer,),
    "deleteruntimepolicy": (Answer,),
    "policyversions": (PolicyVersions,),
    "restorepolicy": (Answer,),
    "addmbpolicy": (Answer,),
    "updatembpolicy": (Answer,),
    "showmbpolicy": (MeasuredBootPolicyAnswer,),
    "listmbpolicy": (MeasuredBootPolicyNamesAnswer,),
    "deletembpolicy": (Answer,),
    "regdelete": (Answer,),
    "doctor": (Examination,),
    "addallowlist": (Answer,),
    "showallowlist": (RuntimePolicyAnswer,),
    "deleteallowlist": (Answer,),
}
"""The document of each command, one of these types; when it does not end with 0, `FAILED` ones as well."""

FAILED = (Failure, Refusal)


def text() -> str:
    """The published file."""
    return published_schema("keylime_tenant", DOCUMENTS, FAILED)


if __name__ == "__main__":
    print(text(), end="")
