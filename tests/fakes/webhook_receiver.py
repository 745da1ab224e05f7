"""A receiver of webhooks on loopback, with TLS or without, that remembers and misbehaves as it is told."""

import asyncio
import contextlib
import socket
import ssl
from typing import Any, Self

from aiohttp import web

from keylime.messages.envelope import parse_body
from keylime.messages.revocation import SignedRevocation
from tests.fakes.running_verifier import eventually


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
        self._runner: web.AppRunner | None = None

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
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Closes the port."""
        runner, self._runner = self._runner, None
        if runner is None or runner.server is None:
            return
        for site in list(runner.sites):
            await site.stop()
        connections = [one.transport for one in runner.server.connections if one.transport is not None]
        # One that is closing already has none.
        lines = [line for one in connections if (line := one.get_extra_info("socket")) is not None]
        await runner.cleanup()
        # With TLS they would wait for a last word of clients that may be stopped, or dying.
        for line in lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        await eventually(lambda: all(line.fileno() < 0 for line in lines))

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
