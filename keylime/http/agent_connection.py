"""HTTP calls to one peer over one kept-alive connection that costs as little as may be.

Does for the thousands of agents of a verifier what `client.Peer` does for everybody else, with the same
promises: a pinned key is checked before a byte of a request is sent, redirects, cookies and compression are
not taken, size and time are limited, and nothing of the environment is used. One request is under way at a
time.
"""

import asyncio
import logging
import re
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from typing import Self, TypeVar

import msgspec

from keylime import request_id
from keylime.errors import (
    AnswerPutOff,
    PeerRefused,
    PeerUnreachable,
    UnusableAnswer,
    WrongPeerKey,
    WrongServerCertificate,
)
from keylime.http.answer_parser import AnswerParser
from keylime.http.objections import HostDemands, key_objection
from keylime.http.peer_text import printable
from keylime.http.replies import (
    DEFAULT_MAX_BODY,
    HEADERS,
    Admit,
    Reply,
    log_call,
    peer_url,
    read_reply,
)
from keylime.http.trouble import ConnectFailed, unreachable
from keylime.http.wire import Wire, connect
from keylime.messages.envelope import parse_body
from keylime.pki.server_names import NameCheck

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_PLAIN = re.compile(r"[\w.~-]*=[\w.~-]*", re.ASCII)
_HEAD = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())


class AgentConnection:
    """One peer that is called again and again. Must be closed; it connects at the first call."""

    __slots__ = (
        "_busy",
        "_connect_timeout_s",
        "_host",
        "_keeps_alive",
        "_max_body",
        "_names",
        "_opened_at",
        "_pin",
        "_port",
        "_session",
        "_timeout_s",
        "_tls",
        "_url",
        "_wire",
    )

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        pin: bytes | None = None,
        names: NameCheck | None = None,
        timeout_s: float,
        connect_timeout_s: float | None = None,
        max_body: int = DEFAULT_MAX_BODY,
        keeps_alive: bool = True,
    ) -> None:
        """`pin` is the SHA-256 of an agent's public key; without `tls` and a pin, this is plain HTTP.

        A service has `names` instead: the chain of its certificate is checked by `tls`, and the certificate
        must be a server's, for `host` as far as `names` says.

        `timeout_s` covers a whole call, from connecting to the last byte; somebody must have taken the
        connection after `connect_timeout_s` of it. A connection that is not kept alive ends after each
        answer; the next handshake is a short one all the same. Raises ValueError for a pin without TLS, or
        TLS without a pin: neither could be honoured.
        """
        if (tls is None) != (pin is None and names is None) or (pin is not None and names is not None):
            raise ValueError(
                "peers are called with TLS and a pinned key (services: names to check), or with neither"
            )
        if tls is not None and tls.verify_mode is ssl.CERT_NONE and pin is None:
            raise ValueError("a peer would be trusted without a check: neither a pin nor a CA")
        self._url = peer_url(host, port, tls=tls is not None)
        self._host, self._port = host.strip("[]"), port
        self._tls, self._pin = tls, pin
        self._names = None if names is None else HostDemands(self._host, names)
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._max_body = max_body
        self._keeps_alive = keeps_alive
        self._opened_at = 0.0
        self._wire: Wire | None = None
        self._session: ssl.SSLSession | None = None
        self._busy: asyncio.Lock | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.close()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, and the agent has not closed it."""
        return self._wire is not None and self._wire.is_open

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: msgspec.Struct | None = None,
        max_body: int | None = None,
        admit: Admit | None = None,
        is_routine: bool = False,
    ) -> Reply:
        """The answer, whatever its status; arguments and errors are those of `client.Peer.request`."""
        about = request_id.for_call()
        request = self._written(method, path, query, body, about)
        parser = AnswerParser(self._max_body if max_body is None else max_body, admit)
        try:
            async with asyncio.timeout(self._timeout_s), self._turn():
                await self._ask(request, parser, may_repeat=method == "GET")
                is_news = not is_routine and (method != "GET" or parser.status >= 400)
                log_call(log, method, self._url + path, parser.status, about, is_news=is_news)
                return read_reply(parser.status, parser.body, self._url, is_trusted=self._names is not None)
        except TimeoutError as error:
            if parser.status:
                reason = f"the answer was not complete within {self._timeout_s:g} s"
                raise UnusableAnswer(f"{self._url}: {reason}") from error
            raise PeerUnreachable(f"{self._url}: no answer within {self._timeout_s:g} s") from error
        except (OSError, ConnectFailed) as error:
            raise await unreachable(self._url, self._url, self._tls, error) from error
        finally:
            parser.release()

    async def fetch(self, kind: type[ResultT], method: str, path: str) -> ResultT:
        """The `results` of a successful answer as `kind`; errors are those of `client.Peer.fetch`."""
        reply = await self.request(method, path)
        if not reply.is_success:
            raise PeerRefused(reply.code, reply.status)
        return parse_body(reply.results, kind)

    async def retire(self, life_s: float) -> None:
        """Closes the connection if it is `life_s` old or older, and no call is under way."""
        is_busy = self._busy is not None and self._busy.locked()
        if not is_busy and time.monotonic() - self._opened_at >= life_s:
            self._drop(resumes=True)

    async def close(self) -> None:
        """Closes the connection; the agent can be called again after it."""
        self._drop()
        self._session = None

    def _written(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None,
        body: msgspec.Struct | None,
        about: str,
    ) -> bytes:
        target = path + (f"?{_encoded(query)}" if query else "")
        host = self._url.rpartition("/")[2]
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{_HEAD}{request_id.HEADER}: {about}\r\n"
        if body is None:
            return f"{head}\r\n".encode("ascii")
        content = msgspec.json.encode(body)
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        return head.encode("ascii") + content

    def _turn(self) -> asyncio.Lock:
        if self._busy is None:
            self._busy = asyncio.Lock()
        return self._busy

    async def _ask(self, request: bytes, parser: AnswerParser, *, may_repeat: bool) -> None:
        """Returns when the answer is there. What goes wrong ends the connection."""
        wire = self._wire
        try:
            if wire is not None and wire.is_open:
                try:
                    await wire.exchange(request, parser)
                except ConnectionError:
                    # The agent may just have closed what was idle, as long as nothing of an answer has come.
                    if parser.has_begun or not may_repeat:
                        raise
                    self._drop()
                    await (await self._connect()).exchange(request, parser)
            else:
                self._drop()
                await (await self._connect()).exchange(request, parser)
        except (UnusableAnswer, AnswerPutOff) as error:
            self._drop()
            if isinstance(error, UnusableAnswer):
                raise UnusableAnswer(f"{self._url}: {error}") from error
            raise
        except BaseException:
            self._drop()
            raise
        if not (parser.keeps_alive and self._keeps_alive):
            self._drop(resumes=parser.keeps_alive)

    async def _connect(self) -> Wire:
        """A new connection to whoever is meant.

        Raises WrongPeerKey, WrongServerCertificate, and ConnectFailed.
        """
        self._wire, certificate = await connect(
            self._host, self._port, self._tls, self._session, self._connect_timeout_s
        )
        self._session = None
        self._opened_at = time.monotonic()
        if self._pin is not None and (objection := key_objection(certificate, self._pin)) is not None:
            raise WrongPeerKey(f"{self._url}: {objection}")
        if self._names is not None and (said := self._names.objection(certificate, self._port)) is not None:
            raise WrongServerCertificate(f"{self._url}: {printable(said)}")
        return self._wire

    def _drop(self, *, resumes: bool = False) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            self._session = wire.session() if resumes else None
            wire.close()


def _encoded(query: Mapping[str, str | int]) -> str:
    """As `urllib.parse.urlencode` has it, of which a question to an agent has nothing to encode."""
    pairs = [f"{name}={value}" for name, value in query.items()]
    return "&".join(pairs) if all(map(_PLAIN.fullmatch, pairs)) else urllib.parse.urlencode(query)
