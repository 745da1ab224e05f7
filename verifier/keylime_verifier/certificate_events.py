"""Tells the history of certificates that a verifier uses and that are about to end, once of each."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

from keylime.database.engine import DatabaseUnavailable
from keylime.pki.lifetimes import CertificateFile, Validity, short_remark
from keylime_verifier.agents.events import EventKind, Occurrence

log = logging.getLogger("keylime.verifier")

_LOOK_S = 60.0

Tell: TypeAlias = Callable[[Occurrence], Awaitable[None]]
"""Adds an event to the history, once of each token. Raises DatabaseUnavailable."""


class CertificateEvents:
    """Looks at the certificates in use."""

    def __init__(
        self,
        in_use: Callable[[], Sequence[CertificateFile]],
        verifier: str,
        tell: Tell,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`verifier` is what the history calls this one."""
        self._in_use = in_use
        self._verifier = verifier
        self._tell = tell
        self._now = now
        self._told: set[str] = set()

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            try:
                await self.look()
            except DatabaseUnavailable as error:
                log.debug("%s; certificates are told of later", error)
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Looks once. Raises DatabaseUnavailable."""
        now = self._now()
        told = set()
        for certificate in dict.fromkeys(self._in_use()):
            remark = short_remark(certificate, now)
            if remark is None:
                continue
            event = certificate_event(certificate, certificate.lifetime.validity(now), self._verifier, remark)
            told.add(event.token)
            if event.token not in self._told:
                await self._tell(event)
        self._told = told


def certificate_event(
    certificate: CertificateFile, validity: Validity, verifier: str, remark: str
) -> Occurrence:
    """The event, named so that it is told once, also after a restart and by each worker of a verifier."""
    life = certificate.lifetime
    what = (verifier, certificate.holder.name, str(certificate.path), life.begins, life.ends, validity.name)
    return Occurrence(
        token=hashlib.sha256(repr(what).encode()).hexdigest()[:32],
        kind=EventKind.CERTIFICATE,
        details={
            "verifier": verifier,
            "holder": certificate.holder.value,
            "file": certificate.path.name,
            "state": validity.name.lower(),
            "ends": int(life.ends.timestamp()),
            "remark": remark,
        },
    )
