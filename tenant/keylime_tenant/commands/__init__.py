"""The commands of `-c`, by the word that names them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from keylime_tenant.commands import enrol, policies, registrar, revocations, verifier
from keylime_tenant.session import Session


@dataclass(frozen=True, slots=True)
class Command:
    """What runs for one word; `replacement` is the word to use instead of a deprecated one."""

    run: Callable[[Session], Awaitable[None]]
    needs_agent: bool = False
    replacement: str | None = None


COMMANDS: Mapping[str, Command] = {
    "add": Command(enrol.add, needs_agent=True),
    "update": Command(enrol.update, needs_agent=True),
    "delete": Command(verifier.delete, needs_agent=True),
    "reactivate": Command(verifier.reactivate, needs_agent=True),
    "status": Command(registrar.status, needs_agent=True),
    "cvstatus": Command(verifier.cvstatus, needs_agent=True),
    "regstatus": Command(registrar.regstatus, needs_agent=True),
    "regdelete": Command(registrar.regdelete, needs_agent=True),
    "cvlist": Command(verifier.cvlist),
    "bulkinfo": Command(verifier.bulkinfo),
    "reglist": Command(registrar.reglist),
    "revocations": Command(revocations.revocations),
    "addruntimepolicy": Command(policies.add_runtime_policy),
    "updateruntimepolicy": Command(policies.update_runtime_policy),
    "showruntimepolicy": Command(policies.show_runtime_policy),
    "deleteruntimepolicy": Command(policies.delete_runtime_policy),
    "listruntimepolicy": Command(policies.list_runtime_policies),
    "addmbpolicy": Command(policies.add_measured_boot_policy),
    "updatembpolicy": Command(policies.update_measured_boot_policy),
    "showmbpolicy": Command(policies.show_measured_boot_policy),
    "deletembpolicy": Command(policies.delete_measured_boot_policy),
    "listmbpolicy": Command(policies.list_measured_boot_policies),
    "addallowlist": Command(policies.add_runtime_policy, replacement="addruntimepolicy"),
    "showallowlist": Command(policies.show_runtime_policy, replacement="showruntimepolicy"),
    "deleteallowlist": Command(policies.delete_runtime_policy, replacement="deleteruntimepolicy"),
}
