"""What a component's tables are: their definitions, and the revisions that led to them."""

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

UNFINISHED = "unfinished"
"""What stands for a revision while tables are made that are not part of a transaction."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A component's tables: the folder of its revisions, and the table that remembers the current one.

    `program --migrate` is what an operator runs to bring them up to date. `tables` are those of the newest
    revision.
    """

    migrations: Path
    version_table: str
    program: str
    tables: sa.MetaData

    @property
    def revisions(self) -> tuple[str, ...]:
        """All that there are, the newest last. Files are named for them, like `v0002_shards.py`."""
        files = (self.migrations / "versions").glob("*_*.py")
        return tuple(sorted(path.name.partition("_")[0] for path in files))

    @property
    def newest(self) -> str:
        """The revision that this release works with."""
        return self.revisions[-1]
