"""HTTP calls to one peer: kept-alive connections, a pinned or CA-checked certificate, bounds on everything.

A peer's answer is hostile input: redirects are not followed, cookies and compression are not taken, size
and time are limited. Nothing of the environment (proxies, netrc) or the system's trust store is used.
"""

import asyncio
import http.client
import io
import os
import re
import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

import aiohttp
import msgspec
import yarl

from keylime.errors import MalformedMessage, PeerRefused, PeerUnreachable
from keylime.messages.envelope import parse_body, parse_envelope

ResultT = TypeVar("ResultT")

DEFAULT_MAX_BODY = 16 << 20  # bytes
_KEEP_ALIVE_S = 60.0
_MAX_CONNECTIONS = 4
_MAX_STATUS = 1000
# A connection keeps buffers as large as the largest answer it carried, for which one that carried more is not
# worth keeping: the first IMA list of a machine is long, those after it are a few lines.
_LARGEST_KEPT = 8 << 10
_EMPTY = msgspec.Raw(b"{}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Reply:
    """A peer's answer: HTTP status, the envelope's text (fit for a log), and its results, still JSON."""

    code: int
    status: str
    results: msgspec.Raw

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.code < 300


def peer_url(host: str, port: int, *, tls: bool) -> str:
    """The base URL of a peer; an IPv6 address is bracketed."""
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{'https' if tls else 'http'}://{name}:{port}"


class Peer:
    """One server that is called again and again. Must be closed; connections open on the first call."""

    def __init__(
        self,
        base_url: str,
        *,
        tls: ssl.SSLContext | None,
        pin: bytes | None = None,
        timeout_s: float,
        max_body: int = DEFAULT_MAX_BODY,
        keep_alive_s: float = _KEEP_ALIVE_S,
    ) -> None:
        """`pin` is the SHA-256 of the peer's DER certificate, checked before a byte of a request is sent.

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
        self._pin = pin
        self._timeout_s = timeout_s
        self._max_body = max_body
        self._keep_alive_s = keep_alive_s
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
    ) -> Reply:
        """The answer, whatever its status. `path` starts with "/" and is percent-encoded where needed.

        Raises PeerUnreachable when there is no usable answer: no connection, wrong certificate, time-out, too
        much data, a redirect, or a success that is not an envelope.
        """
        target = self._url + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        content = None if body is None else io.BytesIO(msgspec.json.encode(body))
        headers = _HEADERS if body is None else {**_HEADERS, "Content-Type": "application/json"}
        deadline = aiohttp.ClientTimeout(total=self._timeout_s if timeout_s is None else timeout_s)
        data = b""
        self._under_way += 1
        try:
            async with self._open().request(
                method,
                yarl.URL(target, encoded=True),
                data=content,
                headers=headers,
                ssl=self._tls if self._tls is not None else True,
                allow_redirects=False,
                timeout=deadline,
            ) as response:
                data = await self._read(response)
                return _reply(response.status, data, self._url)
        except TimeoutError as error:
            raise PeerUnreachable(f"{self._url}: no answer within {deadline.total:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise PeerUnreachable(f"{self._url}: {_reason(error)}") from error
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

    async def close(self) -> None:
        """Closes the connections; the peer can be used again after it."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # aiohttp takes the context from the request and the fingerprint from the connector, so that all
            # peers share one context and still each has its own pin.
            connector = aiohttp.TCPConnector(
                limit=_MAX_CONNECTIONS,
                ssl=True if self._pin is None else aiohttp.Fingerprint(self._pin),
                keepalive_timeout=self._keep_alive_s,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            )
        return self._session

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if 300 <= response.status < 400:
            raise PeerUnreachable(f"{self._url}: answered with a redirect ({response.status})")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise PeerUnreachable(f"{self._url}: answered with a compressed body")
        if (response.content_length or 0) > self._max_body:
            raise PeerUnreachable(f"{self._url}: the answer is larger than {self._max_body} bytes")
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > self._max_body:
                raise PeerUnreachable(f"{self._url}: the answer is larger than {self._max_body} bytes")
        return bytes(data)


class _ErrorDetail(msgspec.Struct, frozen=True):
    detail: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: list[_ErrorDetail]


def _reply(code: int, data: bytes, url: str) -> Reply:
    phrase = http.client.responses.get(code, str(code))
    if 200 <= code < 300 and not data:
        # Verifiers answer deleted policies (204) without a body.
        return Reply(code, phrase, _EMPTY)
    try:
        envelope = parse_envelope(data)
    except MalformedMessage as error:
        if 200 <= code < 300:
            raise PeerUnreachable(f"{url}: the answer is not an envelope: {error}") from error
        # Errors often come without an envelope: empty, or from the layer that checks rights.
        return Reply(code, printable(_first_detail(data) or phrase), _EMPTY)
    # Agents of the Rust line send null where there are no results.
    results = _EMPTY if bytes(envelope.results).strip() == b"null" else envelope.results
    return Reply(code, printable(envelope.status or phrase), results)


def _first_detail(data: bytes) -> str:
    try:
        errors = parse_body(data, _Errors).errors
    except MalformedMessage:
        return ""
    return errors[0].detail if errors else ""


def printable(text: str) -> str:
    """A peer's `text` made fit for logs and terminals: control characters escaped, length bounded."""
    shown = _UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", text[:_MAX_STATUS])
    return shown if len(text) <= _MAX_STATUS else shown + "..."


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return "the certificate is not the pinned one"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {printable(_system_reason(error.os_error))}"
    return printable(str(error) or type(error).__name__)


def _system_reason(error: OSError) -> str:
    """The system's words; errors of TLS and of name resolution have numbers of their own kind."""
    number = 0 if isinstance(error, ssl.SSLError) else error.errno or 0
    return os.strerror(number) if number > 0 else str(error)
