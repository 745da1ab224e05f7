"""Memory that is free goes back to the system; by itself the allocator keeps it for the next need."""

import ctypes


def give_back() -> None:
    """Has the C library return what it holds without need; does nothing where it cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
