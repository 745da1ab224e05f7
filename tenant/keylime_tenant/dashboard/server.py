"""The page on its loopback address, from its first moment to its last."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from keylime.errors import ConfigError
from keylime_tenant.dashboard import handlers
from keylime_tenant.dashboard.access import Door, PageAddress, own_address
from keylime_tenant.dashboard.chronicle import Chronicle
from keylime_tenant.dashboard.following import EventFeed
from keylime_tenant.dashboard.growth import Growth
from keylime_tenant.dashboard.rendering import Renderer
from keylime_tenant.session import Session

_MAX_BODY = 64 << 10  # bytes: forms
_MAX_HEAD = 16 << 10
_IDLE_S = 120.0


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One that serves."""

    place: PageAddress
    door: Door

    @property
    def link(self) -> str:
        """What opens it, once: a secret."""
        return self.place.url(f"/login?token={self.door.link_token}")


@contextlib.asynccontextmanager
async def serving(session: Session, port: int | None) -> AsyncIterator[Dashboard]:
    """The page, for as long as it is needed. Raises ConfigError when `port` cannot be had."""
    address = "127.0.0.1" if port else own_address()
    try:
        sockets = bind_sockets(port or 0, address)
    except OSError as error:
        raise ConfigError(f"--port: cannot listen on {address} port {port}: {error.strerror}") from error
    place, door, chronicle = PageAddress(address, sockets[0].getsockname()[1]), Door(), Chronicle()
    follower = EventFeed(session.verifier, session.open_events, chronicle)
    site = handlers.Site(session, place, door, Renderer(door.form_token), follower, chronicle, Growth())
    server = HTTPServer(
        application(site),
        max_body_size=_MAX_BODY,
        max_header_size=_MAX_HEAD,
        max_buffer_size=_MAX_BODY + _MAX_HEAD,
        idle_connection_timeout=_IDLE_S,
    )
    following = asyncio.create_task(follower.run())
    server.add_sockets(sockets)
    try:
        yield Dashboard(place, door)
    finally:
        server.stop()
        follower.end()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await server.close_all_connections()


def application(site: handlers.Site) -> Application:
    """Every address of the page."""
    shared = {"site": site}
    routes = [(path, handler, shared) for path, handler in _ROUTES]
    return Application(
        routes,
        default_handler_class=handlers.AbsentHandler,
        default_handler_args=shared,
        log_function=_log_nothing,
    )


def _log_nothing(_handler: RequestHandler) -> None:
    """Tornado would log addresses with all that is in them."""


_ROUTES: tuple[tuple[str, type[RequestHandler]], ...] = (
    (r"/", handlers.FleetHandler),
    (r"/login", handlers.LoginHandler),
    (r"/events", handlers.EventsHandler),
    (r"/static/([a-z.]+)", handlers.StaticHandler),
    (r"/machine/([^/]+)", handlers.MachineHandler),
    (r"/machine/([^/]+)/accept", handlers.AcceptHandler),
    (r"/machine/([^/]+)/(stop|reactivate|delete)", handlers.ConfirmHandler),
    (r"/policies", handlers.PoliciesHandler),
    (r"/policies/(runtime|boot)/([^/]+)", handlers.PolicyHandler),
    (r"/revocations", handlers.RevocationsHandler),
    (r"/services", handlers.ServicesHandler),
)
