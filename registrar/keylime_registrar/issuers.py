"""Whether the makers of registered TPMs are in the store that the tenant checks EK certificates with.

Nobody is refused here for it: the tenant refuses when somebody wants to add the agent, and that may be late.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from keylime.errors import KeylimeError
from keylime.pki.der import TolerantCertificate
from keylime.pki.ek import MissingIssuer, check_ek_certificate, trust_store
from keylime.tpm.keys import parse_endorsement_key
from keylime_registrar.anchors import Anchors
from keylime_registrar.identity import Registration

log = logging.getLogger(__name__)

_MOST = 100  # issuers that are remembered
_TELL_INTERVAL_S = 86_400.0


class Issuers:
    """The store, and which makers it lacks."""

    def __init__(self, directory: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._directory = directory
        self._anchors = Anchors(directory)
        self._now = now
        self._missing: dict[str, Registration] = {}  # an agent by its issuer
        self._told: dict[str, datetime] = {}
        self._looked_with: Sequence[TolerantCertificate] = ()

    @property
    def is_kept(self) -> bool:
        """Whether there is a store on this machine, which need not be the tenant's."""
        return self._directory.is_dir() and any(self._directory.iterdir())

    def look_at(self, registration: Registration) -> None:
        """Says, once a day for each maker, that the store lacks the issuer of an agent that is active."""
        missing = self._missing_of(registration, self._anchors.load())
        if missing is None:
            return
        now, subject = self._now(), missing.subject
        if len(self._missing) < _MOST:
            self._missing[subject] = registration
        told_at = self._told.get(subject)
        if told_at is not None and (now - told_at).total_seconds() < _TELL_INTERVAL_S:
            return
        if len(self._told) >= _MOST:
            self._told.clear()
        self._told[subject] = now
        log.warning(
            "agent %s: the issuer of its EK certificate, %r, is not in %s, and the tenant will not add it: "
            "`keylime_tenant -c trust-issuer -u %s`, or `keylime_ca import-vendor FILE`",
            registration.agent_id,
            subject,
            self._directory,
            registration.agent_id,
        )

    def remark(self) -> str | None:
        """What somebody should see to, in words fit for anyone."""
        if not self._missing:
            return None
        anchors = self._anchors.load()
        if anchors is not self._looked_with:
            self._looked_with = anchors
            self._missing = {
                subject: one
                for subject, one in self._missing.items()
                if self._missing_of(one, anchors) is not None
            }
        count = len(self._missing)
        return f"it lacks {count} makers of TPMs that have registered, see the log" if count else None

    def _missing_of(
        self, registration: Registration, anchors: Sequence[TolerantCertificate]
    ) -> MissingIssuer | None:
        if registration.ekcert is None:
            return None
        try:
            key = parse_endorsement_key(registration.ek_tpm).public_key
        except KeylimeError:  # of an earlier release, which took others
            return None
        return check_ek_certificate(registration.ekcert, key, trust_store(anchors), self._now()).missing
