"""Core dumps: none of a process that holds keys."""

import resource


def forbid_core_dumps() -> None:
    """No file ever holds a copy of this process's memory, with the keys in it; its children inherit that."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
