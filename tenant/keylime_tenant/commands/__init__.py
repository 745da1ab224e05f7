"""The commands of the command line: a module for each subject, found by `keylime_tenant.catalogue`."""

import importlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from keylime_tenant.catalogue import Command

if TYPE_CHECKING:
    from keylime_tenant.session import Session

Run: TypeAlias = "Callable[[Session], Awaitable[None]]"


def run_of(command: Command) -> Run:
    """The function that carries out `command`; what it needs is imported now, and nothing else."""
    module, _, function = command.place.partition(".")
    run: Run = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return run
