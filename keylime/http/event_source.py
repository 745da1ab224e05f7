"""Server-sent events of a service, read while they come, and read on after an interruption.

The format is that of the HTML standard, section 9.2. What a peer sends is bounded: a block that is longer
than any event ends the connection.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

import aiohttp
import yarl

from keylime import request_id
from keylime.errors import PeerRefused, PeerUnreachable, UnusableAnswer
from keylime.http.exchange import reason_phrase
from keylime.http.openapi import STREAM_TYPE
from keylime.http.server_check import ServerCheck
from keylime.http.trouble import unreachable
from keylime.pki.server_names import NameCheck

log = logging.getLogger(__name__)

MAX_BLOCK = 1 << 20  # bytes: many times what the longest event has
_SILENCE_S = 60.0  # a server says each 15 s that it lives


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """One block; one without data says only up to which id everything was told."""

    id: str
    kind: str
    data: bytes


class BlockReader:
    """Bytes in, as they come; whole blocks out."""

    def __init__(self, most: int = MAX_BLOCK) -> None:
        self._most = most
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[StreamedEvent]:
        """The blocks that `data` completes. Raises UnusableAnswer when one does not end."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            yield _read(block)
        if len(self._rest) > self._most:
            raise UnusableAnswer(f"an event has more than {self._most} bytes")


def _read(block: bytes) -> StreamedEvent:
    values: dict[bytes, list[bytes]] = {}
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        values.setdefault(name, []).append(value.removeprefix(b" "))
    last = {name: found[-1].decode("utf-8", "replace") for name, found in values.items()}
    return StreamedEvent(
        last.get(b"id", ""), last.get(b"event", "message"), b"\n".join(values.get(b"data", ()))
    )


class EventSource:
    """The events of one service, whose certificate is checked as for every other call."""

    def __init__(
        self, base_url: str, *, tls: ssl.SSLContext, names: NameCheck, connect_timeout_s: float
    ) -> None:
        self._url = base_url
        self._tls = tls
        self._check = ServerCheck(yarl.URL(base_url).raw_host or "", names)
        self._connect_timeout_s = connect_timeout_s

    async def follow(self, path: str, after: str) -> AsyncGenerator[StreamedEvent, None]:
        """What happens after the event with the id `after`, until the service ends the stream.

        Raises PeerUnreachable, PeerRefused for another status than 200, UnusableAnswer.
        """
        timeout = aiohttp.ClientTimeout(total=None, connect=self._connect_timeout_s, sock_read=_SILENCE_S)
        headers = {
            "Accept": STREAM_TYPE,
            "Accept-Encoding": "identity",
            "Last-Event-ID": after,
            request_id.HEADER: request_id.for_call(),
        }
        blocks = BlockReader()
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self._check),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    trust_env=False,
                    auto_decompress=False,
                    timeout=timeout,
                ) as session,
                session.get(
                    yarl.URL(self._url + path, encoded=True),
                    headers=headers,
                    ssl=self._tls,
                    allow_redirects=False,
                ) as response,
            ):
                if response.status != 200:
                    raise PeerRefused(response.status, reason_phrase(response.status) or "")
                if response.content_type != STREAM_TYPE:
                    raise UnusableAnswer(f"{self._url}: answered with no stream of events")
                log.debug("following %s%s", self._url, path)
                async for data in response.content.iter_any():
                    for event in blocks.feed(data):
                        yield event
        except TimeoutError as error:
            raise PeerUnreachable(f"{self._url}: silent for {_SILENCE_S:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise await unreachable(self._url, self._url, self._tls, error) from error
