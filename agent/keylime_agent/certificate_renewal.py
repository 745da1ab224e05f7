"""The agent's certificate in use: made anew in time, under the same key, and taken up without a restart.

Whoever pins the key sees no difference. The registrar is told all the same, so that who is introduced to the
agent later, or goes by the certificate itself, learns the one in use.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from cryptography import x509

from keylime.errors import ConfigError
from keylime_agent.listener import ListenerIdentity
from keylime_agent.registration import RefusedByRegistrar

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 3600.0
_SAY_AGAIN_LOOKS = 24


def _utc_now() -> datetime:
    return datetime.now(UTC)


class CertificateRenewal:
    """Looks after the certificate that the listener shows. `run` and `tell` are loops."""

    def __init__(
        self,
        identity: ListenerIdentity,
        clients: tuple[x509.Certificate, ...],
        *,
        serve: Callable[[ssl.SSLContext], None],
        register: Callable[[], Awaitable[object]],
        now: Callable[[], datetime] = _utc_now,
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        """`serve` has the listener show what is in a context; `register` tells the registrar `identity`.

        `clients` are the authorities of those who may connect.
        """
        self.identity = identity
        self._clients = clients
        self._serve = serve
        self._register = register
        self._now = now
        self._look_every_s = look_every_s
        self._told = identity.certificate_pem  # to the registrar
        self._changed = asyncio.Event()
        self._looks = 0
        self._last_problem: str | None = None
        self._report(identity.remark)

    def reload(self, clients: tuple[x509.Certificate, ...]) -> Callable[[], None]:
        """Reads everything anew and returns what takes it up. Raises ConfigError, with nothing changed."""
        fresh = self.identity.refreshed(self._now())
        context = fresh.context(clients)

        def take_up() -> None:
            self._clients = clients
            self._take_up(fresh, context)

        return take_up

    async def run(self) -> None:
        """Looks at the certificate again and again."""
        while True:
            await asyncio.sleep(self._look_every_s)
            self.look()

    async def tell(self) -> None:
        """Tells the registrar of each other certificate, which takes as long as there is none to answer."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.identity.certificate_pem != self._told:
                self._told = self.identity.certificate_pem
                await self._register_again()

    def look(self) -> None:
        """Takes up another certificate for the same key, made now or put there. Problems are logged."""
        self._looks += 1
        try:
            fresh = self.identity.refreshed(self._now())
            if fresh.certificate_pem != self.identity.certificate_pem:
                self._take_up(fresh, fresh.context(self._clients))
        except ConfigError as error:
            self._report(f"the agent goes on with the certificate that it has: {error}")
        else:
            self._report(fresh.remark)

    def _take_up(self, fresh: ListenerIdentity, context: ssl.SSLContext) -> None:
        is_another = fresh.certificate_pem != self.identity.certificate_pem
        self.identity = fresh
        self._serve(context)
        if is_another:
            log.info("another certificate for the same key is in use from now on (%s)", fresh.tls.certificate)
            self._changed.set()

    def _report(self, problem: str | None) -> None:
        """Says what is wrong once, and then once a day."""
        if problem is not None and (problem != self._last_problem or self._looks % _SAY_AGAIN_LOOKS == 0):
            log.warning("%s", problem)
        self._last_problem = problem

    async def _register_again(self) -> None:
        try:
            await self._register()
        except RefusedByRegistrar as error:
            # Nothing is lost: who watches the agent knows its key.
            log.error("the registrar does not take the agent's new certificate: %s", error)
