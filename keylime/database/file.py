"""The file of a SQLite database before it is opened: whose it is, what is in it, and who else can reach it.

Opening a database writes: recovery, another journal mode, files beside it. So a file is looked at first,
without a lock and without a trace; only one that is empty or holds tables of ours is opened or tightened.
"""

import contextlib
import os
import shutil
import sqlite3
import stat
import tempfile
import time
import urllib.parse
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from keylime.errors import ConfigError
from keylime.safe_paths import require_safe_directory, require_safe_file

# Tables by which a database of another implementation is known; its records are not ours to alter.
FOREIGN_TABLES = frozenset(
    {"alembic_version_cloud_verifier", "alembic_version_registrar", "verifiermain", "registrarmain"}
)
OTHER_IMPLEMENTATION = (
    "was made by another implementation, an earlier Keylime, and is left as it is: take it over by --import "
    "(auto_migrate_db = True does so at the first start), or name another one in database_url"
)

_OURS = ("keylime_", "_schema")  # how the tables are called that remember a component's revision
_MAGIC = b"SQLite format 3\0"
_ATTEMPTS = 5
_PAUSE_S = 0.1
_LOOK_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def prepare_file(path: Path) -> None:
    """Makes `path` a file that can be opened as a database of ours, with mode 0600; an absent one is made.

    Raises ConfigError for anything else: links, files of others, foreign or damaged databases; none of them
    is changed in any way.
    """
    if path.is_symlink():
        raise ConfigError(
            f"database file {path} is a symbolic link; name the file itself in database_url, or put it there"
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_safe_directory(path.parent)  # where others put a journal, they decide what is in the tables
        _create(path)
        descriptor = os.open(path, _LOOK_FLAGS)
    except OSError as error:
        raise ConfigError(f"database file {path}: {error.strerror}") from error
    try:
        _check(path, os.fstat(descriptor))
        if os.fstat(descriptor).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise ConfigError(f"database file {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _create(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _check(path: Path, status: os.stat_result) -> None:
    """Raises ConfigError unless the file is empty or a database of ours."""
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"database file {path} is not a regular file")
    try:
        problem = find_foreign(_tables(path, status.st_size))
    except sqlite3.Error as error:
        raise ConfigError(
            f"database {path} cannot be read ({error}) and is left as it is: restore it from a backup, or "
            "name another file in database_url"
        ) from error
    if problem is not None:
        raise ConfigError(f"database {path} {problem}")
    # Its mode is tightened, but not its owner changed.
    if status.st_uid not in (0, os.geteuid()):
        require_safe_file(path)


def tables_in(path: Path) -> frozenset[str]:
    """The tables in the file, read without a trace; none when it cannot be read, or is not there."""
    try:
        if path.is_symlink() or not path.is_file():
            return frozenset()
        return _tables(path, path.stat().st_size) or frozenset()
    except (OSError, sqlite3.Error):
        return frozenset()  # whoever opens it is told why


def find_foreign(tables: Collection[str] | None) -> str | None:
    """Why a database with these tables is not ours, as the rest of a sentence; no tables: no database."""
    if tables is None:
        return "is no SQLite database and is left as it is: name another file in database_url"
    if not tables or any(is_version_table(name) for name in tables):
        return None
    if not FOREIGN_TABLES.isdisjoint(tables):
        return OTHER_IMPLEMENTATION
    return (
        f"belongs to another program (it has a table {min(tables)!r}) and is left as it is: name another "
        "file in database_url"
    )


def is_version_table(name: str) -> bool:
    """Whether a table of this name remembers the revision of one of our components."""
    begin, end = _OURS
    return name.startswith(begin) and name.endswith(end)


def _tables(path: Path, size: int) -> frozenset[str] | None:
    """The tables in the file, read without a trace; None when it is no database.

    Raises sqlite3.Error, and OSError.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return _tables_now(path, size)
        except FileNotFoundError:  # another process has moved its log into the file, and removed it
            size = path.stat().st_size
            time.sleep(_PAUSE_S)
    return _tables_now(path, size)


def _tables_now(path: Path, size: int) -> frozenset[str] | None:
    log = path.with_name(f"{path.name}-wal")
    pending = log.stat().st_size if log.is_file() and not log.is_symlink() else 0
    if size == 0 and not pending:
        return frozenset()
    try:
        found = frozenset() if size == 0 else _settled_tables(path)
    except sqlite3.DatabaseError:
        if not pending:
            raise
        found = frozenset()
    if found is None or found or not pending:
        return found
    # Where nothing may change the log is not read. What a process wrote that ended badly is in there: all of
    # it, or the half that was not yet moved into the file.
    with _copied(path, log) as copy:
        return _read_tables(copy, "mode=rw")


def _settled_tables(path: Path) -> frozenset[str] | None:
    """What `_read_tables` finds, when another process is just writing it as well."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(sqlite3.DatabaseError):
            return _read_tables(path, "mode=ro&immutable=1")
        time.sleep(_PAUSE_S)
    return _read_tables(path, "mode=ro&immutable=1")


def _read_tables(path: Path, mode: str) -> frozenset[str]:
    place = f"file:{urllib.parse.quote(str(path.absolute()))}?{mode}"
    with contextlib.closing(sqlite3.connect(place, uri=True)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        return frozenset(str(name) for (name,) in rows if not str(name).startswith("sqlite_"))


@contextmanager
def _copied(path: Path, log: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="keylime-") as directory:
        copy = Path(directory) / "copy.sqlite"
        shutil.copyfile(path, copy)
        shutil.copyfile(log, copy.with_name(f"{copy.name}-wal"))
        yield copy
