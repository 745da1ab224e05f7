"""The webhook: revocations posted to a URL of the operator's choice, as the same signed envelope.

The receiver is reached with the verifier's client certificate and must present one from `trusted_server_ca`,
for its host name as far as `check_server_names` says. Its answer's body is never read.
"""

import asyncio
import logging
import ssl

import aiohttp
import msgspec
import yarl

from keylime.errors import PeerRefused, PeerUnreachable
from keylime.http.server_check import ServerCheck
from keylime.http.trouble import unreachable
from keylime.messages.revocation import SignedRevocation
from keylime.pki.server_names import NameCheck
from keylime_verifier.revocations.webhook_url import WebhookUrl

log = logging.getLogger("keylime.verifier")

_ACCEPTED = (200, 202)
_MAX_CONNECTIONS = 4
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}


class Webhook:
    """One receiver. Must be closed."""

    def __init__(
        self,
        address: WebhookUrl,
        tls: ssl.SSLContext | None,
        timeout_s: float,
        names: NameCheck = NameCheck.WARN,
    ) -> None:
        """`tls` verifies the receiver; None is for plain HTTP only. Raises ValueError if they do not fit."""
        self._address = address
        self._check = ServerCheck(yarl.URL(address.url).raw_host or "", names)
        self.renew(tls)
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    def renew(self, tls: ssl.SSLContext | None) -> None:
        """The next message goes over a connection with this context. Raises ValueError as the making does."""
        if self._address.is_secure != (tls is not None) or (tls and tls.verify_mode is ssl.CERT_NONE):
            raise ValueError(f"the TLS settings do not fit {self._address.origin}")
        self._tls = tls

    async def post(self, signed: SignedRevocation) -> None:
        """Returns when the receiver has taken the message (200 or 202).

        Raises PeerUnreachable without an answer, PeerRefused for another one; redirects are not followed.
        """
        place = f"webhook {self._address.origin}"
        # Without path and query, which may hold a token.
        log.info("Sending revocation event via webhook to %s", self._address.origin)
        try:
            async with self._open().post(
                self._address.url,
                data=msgspec.json.encode(signed),
                headers=_HEADERS,
                ssl=self._tls if self._tls is not None else True,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            ) as response:
                code = response.status
                response.close()  # whatever follows, however long, is of no interest
        except TimeoutError as error:
            raise PeerUnreachable(f"{place}: no answer within {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise await unreachable(place, self._address.origin, self._tls, error) from error
        if code not in _ACCEPTED:
            note = ", redirects are not followed" if 300 <= code < 400 else ""
            raise PeerRefused(code, f"from {place}{note}")

    async def close(self) -> None:
        """Drops the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, ssl=self._check),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            )
        return self._session
