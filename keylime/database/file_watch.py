"""News of a SQLite file, as far as there can be any: that somebody has committed something to it.

SQLite tells each connection whether others have committed since it was asked last, for a few microseconds and
without a transaction. What has changed is for whoever is called to find out.
"""

import contextlib
import sqlite3
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def watched_file(path: Path, interval_s: float, on_change: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `on_change` is called in a thread after each commit of anybody, soon.

    It is called as well where the file could not be asked: then nobody knows. Entering and leaving wait for
    nothing; what is under way in the thread may call once more after the end.
    """
    ended = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(path, interval_s, on_change, ended), name="database file watch", daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        ended.set()


def _watch(path: Path, interval_s: float, on_change: Callable[[], None], ended: threading.Event) -> None:
    while not ended.is_set():
        with contextlib.suppress(sqlite3.Error), contextlib.closing(_open(path)) as connection:
            seen = None
            while not ended.is_set():
                # Equal only if nobody else has committed; this connection never does.
                version = connection.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    on_change()
                ended.wait(interval_s)
        if not ended.wait(interval_s):
            on_change()


def _open(path: Path) -> sqlite3.Connection:
    # The file was made, or found good, by whoever opened the database.
    return sqlite3.connect(
        f"file:{urllib.parse.quote(str(path))}?mode=rw", uri=True, timeout=0, isolation_level=None
    )
