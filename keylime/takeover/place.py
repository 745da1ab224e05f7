"""Where our own tables are when the configuration names the database of an earlier Keylime.

A file of theirs stays as it is, to the last byte, so that going back is starting the earlier program again:
ours is made beside it. On a server the tables of both stand in one database, under different names.
"""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL

from keylime.config.settings import Settings
from keylime.database.engine import parse_database_url
from keylime.database.file import FOREIGN_TABLES, is_version_table, tables_in

_ENDING = ".taken-over"


@dataclass(frozen=True, slots=True)
class DatabasePlace:
    """The database of our own, and the one that an earlier Keylime may have left, if any."""

    own: URL
    old: URL | None

    @classmethod
    def of(cls, configured: URL) -> "DatabasePlace":
        """What the option `database_url` comes to. Looks at files, without a trace."""
        if configured.get_backend_name() != "sqlite":
            return cls(configured, configured)
        path = Path(configured.database or "")
        beside = own_file(path)
        tables = tables_in(path)
        is_old = not FOREIGN_TABLES.isdisjoint(tables) and not any(map(is_version_table, tables))
        if is_old or (not tables and beside.is_file() and not _is_something(path)):
            return cls(configured.set(database=str(beside)), configured if is_old else None)
        return cls(configured, None)

    @property
    def is_beside(self) -> bool:
        """Whether our own file has another name than the configuration says."""
        return self.old is not None and self.old != self.own


def configured_database(settings: Settings, work_dir: Path, sqlite_name: str) -> DatabasePlace:
    """What the option `database_url` comes to; the keyword `sqlite` is a file in `work_dir`.

    Raises ConfigError, which tells where the option stands.
    """
    with settings.placed("database_url"):
        text = settings.text("database_url")
        return DatabasePlace.of(parse_database_url(text, work_dir=work_dir, sqlite_name=sqlite_name))


def own_file(path: Path) -> Path:
    """The name of our file beside that of an earlier Keylime."""
    return path.with_name(f"{path.stem}{_ENDING}{path.suffix}")


def _is_something(path: Path) -> bool:
    """Whether there is a file that is not empty, whatever is in it."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
