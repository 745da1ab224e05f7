"""A verifier's database, seen from outside: what it has recorded, and how much room that takes."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from tests.fakes.postgresql import running_postgresql


class Stored:
    """Reads beside the verifier; `url` is what the verifier is configured with."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    @property
    def rounds(self) -> int:
        """How many attestations are recorded."""
        return self._number("SELECT sum(attestation_count) FROM progress")

    @property
    def bytes(self) -> int:
        """The tables on disk, without a write-ahead log, whose size follows from the load."""
        if self.url.startswith("sqlite"):
            return self._number("PRAGMA page_count") * self._number("PRAGMA page_size")
        return self._number("SELECT pg_database_size(current_database())")

    def _number(self, query: str) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(sa.text(query)).scalar_one())


@contextlib.contextmanager
def stored_in(kind: str) -> Iterator[Stored]:
    """An empty database: "sqlite", a file, or "postgresql", in a server that ends with the block."""
    with contextlib.ExitStack() as stack:
        if kind == "postgresql":
            url = stack.enter_context(running_postgresql()).new_database()
        else:
            directory = Path(tempfile.mkdtemp(prefix="keylime-fleet-"))
            stack.callback(shutil.rmtree, directory)
            url = f"sqlite:///{directory / 'cv_data.sqlite'}"
        yield Stored(url)
