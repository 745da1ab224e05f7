"""The commands of the tenant: their words, what they are for, which flags they have, where they are done.

A table without imports of what it names, so that help and completion cost no more than reading it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

ENROLMENT = "watching machines"
VIEWS = "what is known"
RUNTIME = "runtime policies of the verifier"
BOOT = "measured boot policies of the verifier"
CARE = "the installation itself"
OLD = "deprecated"

GROUPS = (ENROLMENT, VIEWS, RUNTIME, BOOT, CARE, OLD)


@dataclass(frozen=True, slots=True)
class Command:
    """One word of the command line.

    `place` is the function that carries it out, `module.function` below `keylime_tenant.commands`. `flags`
    are the sections of `keylime_tenant.arguments` that its help shows. An agent that is not named has a
    default id, as scripts of old expect, unless the command `asks_who`. `replacement` is the word to use
    instead of a deprecated one.
    """

    summary: str
    place: str
    group: str
    flags: tuple[str, ...] = ()
    needs_agent: bool = False
    asks_who: bool = False
    replacement: str | None = None


DOCTOR = "doctor.doctor"  # works where other commands cannot even begin

_AGENT = ("agent",)
_VERIFIER = ("verifier",)
_REGISTRAR = ("registrar",)
_ENROL = (
    *_AGENT,
    "contact",
    *_VERIFIER,
    *_REGISTRAR,
    "wait",
    "authority",
    "payload",
    "runtime policy name",
    "runtime policy",
    "signature key",
    "boot policy name",
    "boot policy",
    "tpm policy",
    "old policy",
    "keys",
)
_RUNTIME_POLICY = (
    "runtime policy name",
    "runtime policy",
    "signature key",
    "tpm policy",
    "old policy",
    *_VERIFIER,
)
_BOOT_POLICY = ("boot policy name", "boot policy", *_VERIFIER)

COMMANDS: Mapping[str, Command] = {
    "add": Command("have a registered agent attested", "adding.add", ENROLMENT, _ENROL, needs_agent=True),
    "update": Command(
        "change what is named of an agent that is attested",
        "update.update",
        ENROLMENT,
        (*_ENROL, "removal", "owner"),
        needs_agent=True,
    ),
    "delete": Command(
        "end an agent's attestation, and revoke its certificate",
        "verifier.delete",
        ENROLMENT,
        (*_AGENT, *_VERIFIER, "owner", "authority"),
        needs_agent=True,
    ),
    "reactivate": Command(
        "attest an agent that failed or was stopped again",
        "verifier.reactivate",
        ENROLMENT,
        (*_AGENT, "state", "wait", *_VERIFIER, "verifier id", "owner"),
        needs_agent=True,
    ),
    "approve": Command(
        "say that what was found is right: into the policy with it",
        "approve.approve",
        ENROLMENT,
        (*_AGENT, "approval", "wait", *_VERIFIER, "owner"),
        needs_agent=True,
        asks_who=True,
    ),
    "trust-issuer": Command(
        "trust the maker of an agent's TPM",
        "trust.trust_issuer",
        ENROLMENT,
        (*_AGENT, "fingerprint", *_REGISTRAR),
        needs_agent=True,
        asks_who=True,
    ),
    "status": Command(
        "an agent at both services, and its policies in force",
        "registrar.status",
        VIEWS,
        (*_AGENT, "follow", *_VERIFIER, *_REGISTRAR),
        needs_agent=True,
    ),
    "cvstatus": Command(
        "an agent at the verifier, with its findings",
        "verifier.cvstatus",
        VIEWS,
        (*_AGENT, "follow", "exit code", *_VERIFIER),
        needs_agent=True,
    ),
    "regstatus": Command(
        "an agent at the registrar",
        "registrar.regstatus",
        VIEWS,
        (*_AGENT, *_REGISTRAR),
        needs_agent=True,
    ),
    "bulkinfo": Command(
        "all agents of the verifier, with their findings",
        "verifier.bulkinfo",
        VIEWS,
        (*_VERIFIER, "verifier id"),
    ),
    "top": Command(
        "the fleet, live, the worst first; acts on many agents",
        "top.top",
        VIEWS,
        (*_AGENT, *_VERIFIER, "verifier id"),
    ),
    "dashboard": Command(
        "the fleet in a browser, live; acts on agents",
        "dashboard.dashboard",
        VIEWS,
        ("page", *_VERIFIER, "verifier id", *_REGISTRAR),
    ),
    "cvlist": Command(
        "ids of the agents at the verifier", "verifier.cvlist", VIEWS, (*_VERIFIER, "verifier id")
    ),
    "reglist": Command("ids of the agents at the registrar", "registrar.reglist", VIEWS, _REGISTRAR),
    "why": Command(
        "why an agent fails, what changed before, what to do",
        "why.why",
        VIEWS,
        (*_AGENT, "follow", *_VERIFIER),
        needs_agent=True,
        asks_who=True,
    ),
    "diff": Command(
        "what an agent measured, against its policy",
        "why.diff",
        VIEWS,
        (*_AGENT, *_VERIFIER),
        needs_agent=True,
        asks_who=True,
    ),
    "history": Command(
        "what happened to an agent, and who did it",
        "history.history",
        VIEWS,
        (*_AGENT, "follow", *_VERIFIER),
        needs_agent=True,
        asks_who=True,
    ),
    "audit": Command(
        "who did what, and what was refused to whom",
        "audit.audit",
        VIEWS,
        (*_VERIFIER, "since"),
    ),
    "revocations": Command(
        "whom revocations have reached, and whom not",
        "revocations.revocations",
        VIEWS,
        (*_AGENT, *_VERIFIER),
    ),
    "addruntimepolicy": Command("store a new one", "policies.add_runtime_policy", RUNTIME, _RUNTIME_POLICY),
    "updateruntimepolicy": Command("replace one", "policies.update_runtime_policy", RUNTIME, _RUNTIME_POLICY),
    "showruntimepolicy": Command(
        "show one", "policies.show_runtime_policy", RUNTIME, ("runtime policy name", *_VERIFIER)
    ),
    "listruntimepolicy": Command("list all names", "policies.list_runtime_policies", RUNTIME, _VERIFIER),
    "deleteruntimepolicy": Command(
        "remove one that no agent uses",
        "policies.delete_runtime_policy",
        RUNTIME,
        ("runtime policy name", *_VERIFIER),
    ),
    "policyversions": Command(
        "versions of one, who stored and who uses it",
        "versions.policy_versions",
        RUNTIME,
        ("runtime policy name", "boot policy name", *_VERIFIER),
    ),
    "restorepolicy": Command(
        "go back to a version of one",
        "versions.restore_policy",
        RUNTIME,
        ("runtime policy name", "boot policy name", "policy version", "signature key", *_VERIFIER),
    ),
    "addmbpolicy": Command("store a new one", "policies.add_measured_boot_policy", BOOT, _BOOT_POLICY),
    "updatembpolicy": Command("replace one", "policies.update_measured_boot_policy", BOOT, _BOOT_POLICY),
    "showmbpolicy": Command(
        "show one", "policies.show_measured_boot_policy", BOOT, ("boot policy name", *_VERIFIER)
    ),
    "listmbpolicy": Command("list all names", "policies.list_measured_boot_policies", BOOT, _VERIFIER),
    "deletembpolicy": Command(
        "remove one that no agent uses",
        "policies.delete_measured_boot_policy",
        BOOT,
        ("boot policy name", *_VERIFIER),
    ),
    "regdelete": Command(
        "remove an agent's registration",
        "registrar.regdelete",
        CARE,
        (*_AGENT, *_REGISTRAR),
        needs_agent=True,
    ),
    "doctor": Command(
        "examine services, certificates, clocks, stores",
        DOCTOR,
        CARE,
        (*_VERIFIER, *_REGISTRAR),
    ),
    "addallowlist": Command(
        "now addruntimepolicy",
        "policies.add_runtime_policy",
        OLD,
        _RUNTIME_POLICY,
        replacement="addruntimepolicy",
    ),
    "showallowlist": Command(
        "now showruntimepolicy",
        "policies.show_runtime_policy",
        OLD,
        ("runtime policy name", *_VERIFIER),
        replacement="showruntimepolicy",
    ),
    "deleteallowlist": Command(
        "now deleteruntimepolicy",
        "policies.delete_runtime_policy",
        OLD,
        ("runtime policy name", *_VERIFIER),
        replacement="deleteruntimepolicy",
    ),
}
