"""What one command works with: its arguments, configuration, peers, and the doors to the outside world."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keylime.identifiers import AgentId
from keylime_tenant.arguments import Arguments
from keylime_tenant.client import AgentApi, RegistrarClient, VerifierClient
from keylime_tenant.config import Address, TenantConfig
from keylime_tenant.news import OpenStream
from keylime_tenant.render import Output

if TYPE_CHECKING:  # what only some commands need costs the others nothing
    from keylime_tenant.enrolment import Candidate
    from keylime_tenant.payload import PayloadDelivery
    from keylime_tenant.policies import PolicyDocuments


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of the tenant; made in `main`."""

    arguments: Arguments
    config: TenantConfig
    agent_id: AgentId
    output: Output
    registrar: RegistrarClient
    verifier: VerifierClient
    connect_verifier: Callable[[Address], VerifierClient]
    open_events: OpenStream  # of the verifier
    connect_agent: "Callable[[Candidate], AgentApi]"
    read_policies: "Callable[[], Awaitable[PolicyDocuments]]"
    prepare_delivery: "Callable[[AgentId, Callable[[], None]], PayloadDelivery]"
    revoke_certificate: Callable[[AgentId, int], None]  # by its serial number
    check_ek: "Callable[[Candidate], Awaitable[tuple[str, ...]]]"
    download: Callable[[str], Awaitable[bytes]]
    ask: Callable[[str], str] | None  # None: there is nobody to ask
    sleep: Callable[[float], Awaitable[None]]
    now: Callable[[], float]  # seconds of a clock that is never set

    async def retry(self, what: str, attempt: Callable[[], Awaitable[bool]]) -> int | None:
        """Calls `attempt` until it returns true; the number of calls, or None when patience ended.

        The waits grow; each is announced with `what`, so that an operator sees why nothing seems to happen.
        """
        patience, tries, spent_s = self.config.patience, 0, 0.0
        while True:
            tries, begun = tries + 1, self.now()
            if await attempt():
                return tries
            took_s = self.now() - begun
            spent_s += took_s
            pause_s = patience.pause(tries, took_s, spent_s)
            if pause_s is None:
                return None
            self.output.waiting(
                "%s: try %d of %d, next in %g s", what, tries, patience.max_retries + 1, round(pause_s, 1)
            )
            await self.sleep(pause_s)
