"""What a server says of handshakes that fail because of a certificate: whose, which dates, what to type."""

import logging
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime

from keylime.http.peer_text import printable
from keylime.pki.tls import TlsContext
from keylime.pki.tls_failures import Side, explain

log = logging.getLogger(__name__)

_AGAIN_S = 60.0  # strangers may fail as often as they like
_MOST_TOLD = 64


class HandshakeLog:
    """Tells of each cause once a minute, with the address of one whom it has met."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}

    def failed(self, tls: ssl.SSLContext | None, address: str, error: BaseException | None) -> None:
        """Says why the handshake with the peer at `address` failed, if it was a certificate."""
        if not isinstance(error, ssl.SSLError) or not isinstance(tls, TlsContext):
            return
        cause = explain(str(error), Side(tls.own, tls.trusted), datetime.now(UTC))
        if cause is None:
            return
        now, kind = self._clock(), printable(error.reason or "") + str(error.args[-1:])[:200]
        if now - self._told.get(kind, -_AGAIN_S) >= _AGAIN_S and (
            kind in self._told or len(self._told) < _MOST_TOLD
        ):
            self._told[kind] = now
            log.warning("no TLS with %s: %s", address, cause)
