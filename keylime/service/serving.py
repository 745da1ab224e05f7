"""A daemon that serves, alone or as one of several workers, from its start to the signal that ends it."""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from keylime.service.daemon import attend, log_reloaded, started
from keylime.service.service_manager import ServiceManager
from keylime.service.supervisor import Worker, stop_event


class Daemon(Protocol):
    """A service at work."""

    async def is_alive(self) -> bool:
        """False when only a new start would help."""

    def reload(self, environ: Mapping[str, str]) -> None:
        """Takes up what has changed. Raises KeylimeError, unchanged."""


DaemonT = TypeVar("DaemonT", bound=Daemon)


async def serve_alone(
    service: AbstractAsyncContextManager[DaemonT],
    *,
    check_reload: Callable[[], None],
    manager: ServiceManager,
    status: Callable[[DaemonT], str],
    log: logging.Logger,
) -> None:
    """Serves until a stop signal. `status` is the line that tells operators where; `log` is the program's."""
    stop = stop_event()
    async with started(stop, service) as daemon:
        if daemon is None:
            return

        def reload() -> None:
            check_reload()
            daemon.reload(os.environ)
            log_reloaded()

        line = status(daemon)
        log.info("%s", line)
        await attend(stop, reload=reload, is_alive=daemon.is_alive, manager=manager, status=line)
        log.info("Stopping")


async def serve_as_worker(service: AbstractAsyncContextManager[Daemon], worker: Worker) -> None:
    """Serves until a stop signal, or until the supervisor's end of the lifeline is closed."""
    stop = stop_event(worker.lifeline)
    async with started(stop, service) as daemon:
        if daemon is None:
            return
        await attend(
            stop,
            reload=lambda: daemon.reload(os.environ),
            is_alive=daemon.is_alive,
            manager=worker.manager(),
            status="",
        )


def with_workers(count: int) -> str:
    """How a status line goes on that tells of more than one process."""
    return "" if count == 1 else f" with {count} worker processes"
