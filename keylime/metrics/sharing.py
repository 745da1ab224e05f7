"""How several processes of a daemon count together: in files that each maps into its memory.

The names of a process's files have the number of its place, not that of the system: who takes the place of
one that has ended counts on. Whichever of them is asked sums up what is in the files.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keylime.file_errors import file_errors_explained
from keylime.http.server import reserved_port
from keylime.service.metrics_place import MetricsPlace

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def shared_metrics(place: MetricsPlace | None) -> Iterator[None]:
    """Keeps the port for workers that are to come, and lets them begin from nothing. Raises ConfigError."""
    if place is None:
        yield
        return
    with reserved_port(place.ip, place.port):
        _empty(place.directory)
        yield


def count_together(directory: Path, number: int) -> None:
    """From now on this process, the worker `number`, counts in files of the directory."""
    from prometheus_client import values

    os.environ[_DIRECTORY] = str(directory)
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]  # it has none


def _empty(directory: Path) -> None:
    with file_errors_explained():
        directory.mkdir(mode=0o700, exist_ok=True)
        for left in directory.glob("*.db"):
            left.unlink()
