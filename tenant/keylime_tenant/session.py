"""What one command works with: its arguments, configuration, peers, and the doors to the outside world."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from keylime.identifiers import AgentId
from keylime_tenant.arguments import Arguments
from keylime_tenant.certificate_revocation import CertificateRevocation
from keylime_tenant.client import AgentClient, Registrar, Verifier
from keylime_tenant.config import Address, TenantConfig
from keylime_tenant.ek_check import EkCheck
from keylime_tenant.enrolment import Candidate
from keylime_tenant.payload import Delivery
from keylime_tenant.policies import PolicyDocuments
from keylime_tenant.render import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of the tenant; made in `main`."""

    arguments: Arguments
    config: TenantConfig
    agent_id: AgentId
    output: Output
    registrar: Registrar
    verifier: Verifier
    connect_verifier: Callable[[Address], Verifier]
    connect_agent: Callable[[Candidate], AgentClient]
    read_policies: Callable[[], Awaitable[PolicyDocuments]]
    prepare_delivery: Callable[[AgentId], Delivery]
    certificates: CertificateRevocation
    check_ek: EkCheck
    sleep: Callable[[float], Awaitable[None]]

    async def retry(self, what: str, attempt: Callable[[], Awaitable[bool]]) -> int | None:
        """Calls `attempt` until it returns true; the number of calls, or None when patience ended.

        The waits grow; each is announced with `what`, so that an operator sees why nothing seems to happen.
        """
        delays = list(self.config.patience.delays())
        for tries, delay_s in enumerate(delays, start=1):
            if await attempt():
                return tries
            self.output.info("%s: try %d of %d, next in %g s", what, tries, len(delays) + 1, delay_s)
            await self.sleep(delay_s)
        return len(delays) + 1 if await attempt() else None
