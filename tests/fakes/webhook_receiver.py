"""A receiver of webhooks on loopback, with TLS or without, that remembers and misbehaves as it is told."""

import asyncio
import ssl
from typing import Any, Self

from aiohttp import web

from keylime.messages.envelope import parse_body
from keylime.messages.revocation import SignedRevocation
from tests.fakes.loopback import LoopbackSite


class WebhookReceiver:
    """`received` is what arrived; `code`, `headers`, `body` and `gate` are how it answers."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.received: list[SignedRevocation] = []
        self.client_names: list[str | None] = []
        self.code = 200
        self.headers: dict[str, str] = {}
        self.body = b"thank you"
        self.gate: asyncio.Event | None = None  # answers wait for it
        self.port = 0
        self._tls = tls
        self._site: LoopbackSite | None = None

    @property
    def url(self) -> str:
        """Where to post to; the path and query are a secret, as with many services."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/hooks/SECRET?token=SECRET"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens; again on the same port after `stop`."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._take)
        self._site = await LoopbackSite.open(app, port=self.port, tls=self._tls)
        self.port = self._site.port

    async def stop(self) -> None:
        """Closes the port."""
        site, self._site = self._site, None
        if site is not None:
            await site.close()

    async def _take(self, request: web.Request) -> web.Response:
        assert request.query_string == "token=SECRET"
        certificate: dict[str, Any] = request.get_extra_info("peercert") or {}
        names = [
            value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"
        ]
        self.client_names.append(names[0] if names else None)
        self.received.append(parse_body(await request.read(), SignedRevocation))
        if self.gate is not None:
            await self.gate.wait()
        return web.Response(status=self.code, body=self.body, headers=self.headers)
