"""HTTP calls to one peer: kept-alive connections, a pinned key or checked certificate, bounds on everything.

A peer's answer is hostile input: redirects are not followed, cookies and compression are not taken, size
and time are limited. Nothing of the environment (proxies, netrc) or the system's trust store is used.
"""

import asyncio
import io
import logging
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from typing import Self, TypeVar

import aiohttp
import msgspec
import yarl

from keylime import request_id
from keylime.errors import (
    AnswerPutOff,
    PeerRefused,
    PeerUnreachable,
    UnusableAnswer,
    WrongPeerKey,
)
from keylime.http.key_check import KeyCheck, KeyMismatch
from keylime.http.replies import DEFAULT_MAX_BODY, HEADERS, Admit, Answer, Reply, log_call, read_reply
from keylime.http.server_check import ServerCheck
from keylime.http.trouble import reason_of, unreachable
from keylime.messages.envelope import parse_body
from keylime.pki.server_names import NameCheck

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_KEEP_ALIVE_S = 60.0
_MAX_CONNECTIONS = 4
# A connection keeps buffers as large as the largest answer it carried, for which one that carried more is not
# worth keeping: the first IMA list of a machine is long, those after it are a few lines.
_LARGEST_KEPT = 8 << 10


class Peer:
    """One server that is called again and again. Must be closed; connections open on the first call."""

    def __init__(
        self,
        base_url: str,
        *,
        tls: ssl.SSLContext | None,
        pin: bytes | None = None,
        names: NameCheck = NameCheck.WARN,
        timeout_s: float,
        max_body: int = DEFAULT_MAX_BODY,
        keep_alive_s: float = _KEEP_ALIVE_S,
    ) -> None:
        """`pin` is the SHA-256 of the peer's public key, checked before a byte of a request is sent.

        Without one, the certificate must be a server's, for the host of the URL as far as `names` says.
        `timeout_s` covers a whole call, from connecting to the last byte. Raises ValueError for an https URL
        without `tls`, and for a pin without TLS: neither could be honoured.
        """
        self._url = base_url.rstrip("/")
        secure = self._url.startswith("https://")
        if secure != (tls is not None) or (pin is not None and not secure):
            raise ValueError(f"the TLS settings do not fit the URL {base_url}")
        if tls is not None and tls.verify_mode is ssl.CERT_NONE and pin is None:
            raise ValueError(f"{base_url} would be trusted without a check: neither a pin nor a CA")
        self._tls = tls
        self._is_trusted = tls is not None and pin is None
        self._identity = KeyCheck(pin) if pin is not None else _server_check(self._url, names)
        self._timeout_s = timeout_s
        self._max_body = max_body
        self._keep_alive_s = keep_alive_s
        self._opened_at = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._under_way = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: msgspec.Struct | None = None,
        timeout_s: float | None = None,
        max_body: int | None = None,
        admit: Admit | None = None,
        is_routine: bool = False,
    ) -> Reply:
        """The answer, whatever its status. `path` starts with "/" and is percent-encoded where needed.

        Raises PeerUnreachable when there is no answer: no connection, wrong certificate, time-out; of these
        OwnCertificateFailed when it is our own certificate that has ended, UnusableAnswer when there is an
        answer, but too much of it or too slowly, a redirect, no HTTP, or a success that is not an envelope,
        and WrongPeerKey for another key than the pinned one; and AnswerPutOff when `admit` says no.
        `max_body` is for this answer. Calls that are made by the thousand are routine, and logged at
        DEBUG only.
        """
        target = path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        answer = await self.exchange(
            method,
            target,
            content=None if body is None else msgspec.json.encode(body),
            headers={} if body is None else {"Content-Type": "application/json"},
            timeout_s=timeout_s,
            max_body=max_body,
            admit=admit,
            is_routine=is_routine,
        )
        return read_reply(answer.code, answer.content, self._url, is_trusted=self._is_trusted)

    async def exchange(
        self,
        method: str,
        target: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        max_body: int | None = None,
        admit: Admit | None = None,
        is_routine: bool = False,
    ) -> Answer:
        """The answer, whatever it holds, to `content` with these `headers`. `target` is path and query.

        Raises as `request` does, but for what is no envelope.
        """
        path = target.partition("?")[0]
        about = request_id.for_call()
        sent = {**HEADERS, request_id.HEADER: about, **(headers or {})}
        deadline = aiohttp.ClientTimeout(total=self._timeout_s if timeout_s is None else timeout_s)
        data: bytes | bytearray = b""
        has_begun = False
        self._under_way += 1
        try:
            async with self._open().request(
                method,
                yarl.URL(self._url + target, encoded=True),
                data=None if content is None else io.BytesIO(content),
                headers=sent,
                ssl=self._tls if self._tls is not None else True,
                allow_redirects=False,
                timeout=deadline,
            ) as response:
                has_begun = True
                is_news = not is_routine and (method != "GET" or response.status >= 400)
                log_call(log, method, self._url + path, response.status, about, is_news=is_news)
                data = await self._read(response, self._max_body if max_body is None else max_body, admit)
                return Answer(response.status, response.headers, data)
        except TimeoutError as error:
            if has_begun:
                reason = f"the answer was not complete within {deadline.total:g} s"
                raise UnusableAnswer(f"{self._url}: {reason}") from error
            raise PeerUnreachable(f"{self._url}: no answer within {deadline.total:g} s") from error
        except KeyMismatch as error:
            raise WrongPeerKey(f"{self._url}: {error}") from error
        except aiohttp.ClientResponseError as error:  # this is no HTTP, or too much of it
            raise UnusableAnswer(f"{self._url}: {reason_of(error)}") from error
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise await unreachable(self._url, self._url, self._tls, error) from error
        finally:
            self._under_way -= 1
            if len(data) > _LARGEST_KEPT and not self._under_way:
                await self.close()

    async def fetch(
        self,
        kind: type[ResultT],
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: msgspec.Struct | None = None,
        timeout_s: float | None = None,
    ) -> ResultT:
        """The `results` of a successful answer as `kind`.

        Raises PeerUnreachable as `request` does, PeerRefused when the status is not 2xx, MalformedMessage
        when the results are not of that kind.
        """
        reply = await self.request(method, path, query=query, body=body, timeout_s=timeout_s)
        if not reply.is_success:
            raise PeerRefused(reply.code, reply.status)
        return parse_body(reply.results, kind)

    async def retire(self, life_s: float) -> None:
        """Closes the connections if they are `life_s` old or older, and no call is under way."""
        if not self._under_way and time.monotonic() - self._opened_at >= life_s:
            await self.close()

    async def close(self) -> None:
        """Closes the connections; the peer can be used again after it."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._opened_at = time.monotonic()
            # aiohttp takes the context from the request and the fingerprint from the connector, so that all
            # peers share one context and still each has its own pin or check.
            connector = aiohttp.TCPConnector(
                limit=_MAX_CONNECTIONS,
                ssl=self._identity,
                keepalive_timeout=self._keep_alive_s,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            )
        return self._session

    async def _read(self, response: aiohttp.ClientResponse, most: int, admit: Admit | None) -> bytearray:
        if 300 <= response.status < 400:
            raise UnusableAnswer(f"{self._url}: answered with a redirect ({response.status})")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnusableAnswer(f"{self._url}: answered with a compressed body")
        announced = response.content_length or 0
        admitted = self._admit(announced, most, admit)
        # Where it is known how much will come, nothing is moved about while it does.
        data, size = bytearray(announced), 0
        async for chunk in response.content.iter_any():
            end = size + len(chunk)
            if end > admitted:  # it did not say how much there is; small steps would ask for ever
                admitted = self._admit(max(end, min(2 * admitted, most)), most, admit)
            data[size:end] = chunk
            size = end
        del data[size:]
        return data

    def _admit(self, size: int, most: int, admit: Admit | None) -> int:
        """`size` again, if an answer may be so large. Raises UnusableAnswer, or AnswerPutOff."""
        if size > most:
            raise UnusableAnswer(f"{self._url}: the answer is larger than {most} bytes")
        if admit is not None and not admit(size):
            raise AnswerPutOff(size)
        return size


def _server_check(url: str, names: NameCheck) -> ServerCheck:
    return ServerCheck(yarl.URL(url).raw_host or "", names)
