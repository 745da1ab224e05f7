"""What a program says when the packages of its extra were not installed with it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra_explained(program: str, extra: str) -> Iterator[None]:
    """A program's imports belong in here. A missing package ends it with one line that names the remedy.

    The garbage collector does not look at what is imported, now or later: all of it stays. Afterwards it is
    as it was.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing.startswith("keylime"):
            raise  # a defect of ours, not of the installation
        sys.exit(
            f"{program}: error: the Python package {missing} is not installed; "
            f'run: pip install "keylime[{extra}]"'
        )
    finally:
        if was_enabled:
            gc.enable()
