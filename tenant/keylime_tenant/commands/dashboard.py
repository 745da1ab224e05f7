"""`dashboard`: a web page for this operator alone, until it is ended."""

import asyncio
import os
import signal
import webbrowser
from collections.abc import Mapping

from keylime_tenant.dashboard.server import serving
from keylime_tenant.session import Session


async def dashboard(session: Session) -> None:
    """Serves until SIGINT or SIGTERM. Raises ConfigError."""
    async with serving(session, session.arguments.page_port) as page:
        session.output.result({"address": page.place.url("/")}, names=[page.place.url("/")])
        session.output.announce(f"Dashboard: {page.link}")
        session.output.announce("The link works once. Ctrl-C ends the dashboard.")
        if session.arguments.opens_browser and has_browser(os.environ):
            await asyncio.to_thread(webbrowser.open, page.link)
        await _ended()


def has_browser(environ: Mapping[str, str]) -> bool:
    """Whether a window can be opened; a browser in the terminal would take it from us."""
    return any(environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))


async def _ended() -> None:
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, end.set)
    try:
        await end.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
