"""A daemon's life between ready and stop: the watchdog hears that all is well, SIGHUP reloads files.

What a reload brings is used from then on; files that are no good change nothing.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import NoReturn, TypeVar

from keylime.config.settings import Settings
from keylime.errors import KeylimeError
from keylime.service.background import accompanied
from keylime.service.service_manager import ServiceManager

log = logging.getLogger(__name__)

ServiceT = TypeVar("ServiceT")

# What a server takes up without a restart; all of logging.conf besides.
TLS_OPTIONS = frozenset({"tls_dir", "server_key", "server_key_password", "server_cert", "trusted_client_ca"})


class StoppedEarly(Exception):
    """The service was told to stop while it was still starting."""


async def attend(
    stop: asyncio.Event,
    *,
    reload: Callable[[], None],
    is_alive: Callable[[], Awaitable[bool]],
    manager: ServiceManager,
    status: str,
) -> None:
    """Tells the service manager that all is ready, with a line of `status`; returns when `stop` is set.

    `reload` raises KeylimeError, naming file and remedy, before it has changed anything.
    """
    hang_up = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up.set)
    async with accompanied(_reload_whenever(hang_up, reload, manager, status), manager.keep_alive(is_alive)):
        manager.ready(status)
        await stop.wait()
    manager.stopping()


@asynccontextmanager
async def started(
    stop: asyncio.Event, service: AbstractAsyncContextManager[ServiceT]
) -> AsyncIterator[ServiceT | None]:
    """The service at work; None when `stop` was set while it was still starting, which is then given up."""
    async with AsyncExitStack() as stack:
        begun = None
        with contextlib.suppress(StoppedEarly):
            async with unless(stop):
                begun = await stack.enter_async_context(service)
        yield begun


@asynccontextmanager
async def unless(stop: asyncio.Event) -> AsyncIterator[None]:
    """The block is cancelled when `stop` is set, whatever it waits for. Raises StoppedEarly then."""
    task = asyncio.current_task()
    is_over = False

    def interrupt(watcher: "asyncio.Task[bool]") -> None:
        nonlocal is_over
        if task is not None and not watcher.cancelled():
            is_over = True
            task.cancel()

    watcher = asyncio.create_task(stop.wait())
    watcher.add_done_callback(interrupt)
    try:
        yield
        if is_over:
            await asyncio.sleep(0)  # the cancellation is still to come
    except asyncio.CancelledError as error:
        if task is None or not is_over or task.uncancel() > 0:
            raise
        raise StoppedEarly from error
    finally:
        watcher.remove_done_callback(interrupt)
        watcher.cancel()


def ignore_reloads_for_now() -> None:
    """Before a daemon is ready SIGHUP means nothing; without this it would end the process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def log_reloaded() -> None:
    """The one line that says that all of it is in use."""
    log.info("reloaded")


def log_failed_reload(error: KeylimeError) -> None:
    """The one line that says why nothing changed."""
    log.error("nothing was reloaded; mend this and send SIGHUP again: %s", error)


def warn_of_restarts(before: Settings, after: Settings, reloaded: Collection[str]) -> None:
    """Names in the log each changed option that is not one of the `reloaded` in the component's section."""
    for section, name in before.changed(after):
        if section != before.component or name not in reloaded:
            log.warning("[%s] %s has changed, which needs a restart", section, name)


async def _reload_whenever(
    requested: asyncio.Event, reload: Callable[[], None], manager: ServiceManager, status: str
) -> NoReturn:
    while True:
        await requested.wait()
        requested.clear()
        manager.reloading()
        try:
            reload()
        except KeylimeError as error:
            log_failed_reload(error)
        except Exception:
            log.exception("the reload failed because of a defect")
        manager.ready(status)
