"""Taking over an existing installation: by itself at the first start, and when an operator asks for it."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL

from keylime import patience
from keylime.database.file import FOREIGN_TABLES, OTHER_IMPLEMENTATION
from keylime.database.migrate import Migration, prepare_schema
from keylime.database.schema import Schema
from keylime.database.transactions import Database
from keylime.errors import ConfigError
from keylime.takeover.place import DatabasePlace
from keylime.takeover.report import Fate, TakeoverReport

log = logging.getLogger(__name__)

PlanT = TypeVar("PlanT")

_LONGEST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Importer(Generic[PlanT]):
    """How one program takes its part: `read` says what there is (None: nothing for it), the others use that.

    `rehearse` reports for empty tables, `look` for those of a connection, and `take` writes to them.
    """

    schema: Schema
    read: Callable[[URL], PlanT | None]
    rehearse: Callable[[PlanT], TakeoverReport]
    look: Callable[[sa.Connection, PlanT], TakeoverReport]
    take: Callable[[sa.Connection, PlanT], TakeoverReport]

    async def prepare(
        self, place: DatabasePlace, open_own: Callable[[], Database], *, migrate: bool
    ) -> Migration:
        """As `prepare_schema`; tables that are new take over what is in the old ones. Raises ConfigError."""
        plans: list[PlanT | None] = []
        if place.is_beside and place.old is not None and not _is_there(place.own):
            if not migrate:
                raise ConfigError(f"database {_shown(place.old)} {OTHER_IMPLEMENTATION}")
            # Before a file of ours is made: what cannot be read leaves nothing behind.
            plans.append(await asyncio.to_thread(self.read, place.old))

        def take_over(connection: sa.Connection) -> None:
            if place.old is None or (not place.is_beside and not _are_old(connection)):
                return
            plan = plans[0] if plans else self.read(place.old)
            if plan is not None:
                log_report(self.take(connection, plan))

        database = open_own()
        try:
            return await prepare_schema(database, self.schema, migrate=migrate, take_over=take_over)
        finally:
            await database.close()

    async def run(
        self, source: URL, place: DatabasePlace, open_own: Callable[[], Database], *, dry: bool
    ) -> TakeoverReport:
        """What came of taking over `source`, or would, when it is `dry`. Raises ConfigError."""
        plan = await asyncio.to_thread(self.read, source)
        if plan is None:
            raise ConfigError(
                f"database {_shown(source)} holds nothing for {self.schema.program}: name the one that its "
                "predecessor used"
            )
        if dry and not _is_there(place.own):
            return self.rehearse(plan).dry()
        database = open_own()
        try:
            if dry:
                look = "look at what is here"
                return (await database.read(look, lambda connection: self._look(connection, plan))).dry()
            return await self._write(database, plan)
        finally:
            await database.close()

    async def _write(self, database: Database, plan: PlanT) -> TakeoverReport:
        reports: list[TakeoverReport] = []
        with patience.for_long_work(_LONGEST_S):
            await prepare_schema(
                database,
                self.schema,
                migrate=True,
                take_over=lambda connection: reports.append(self.take(connection, plan)),
            )
            if not reports:  # the tables were there
                reports.append(
                    await database.write("take over", lambda connection: self.take(connection, plan))
                )
        return reports[0]

    def _look(self, connection: sa.Connection, plan: PlanT) -> TakeoverReport:
        if self.schema.version_table not in sa.inspect(connection).get_table_names():
            return self.rehearse(plan)
        return self.look(connection, plan)


def log_report(report: TakeoverReport) -> None:
    """Says what was taken over: what was not as warnings, one line each."""
    for item in report.noteworthy:
        log.log(logging.WARNING if item.fate is Fate.NOT_TAKEN else logging.INFO, "%s", item)
    log.warning("%s", report.summary())


def _is_there(own: URL) -> bool:
    """Whether there can be tables of our own; a server is asked later."""
    if own.get_backend_name() != "sqlite":
        return True
    path = Path(own.database or "")
    return path.is_file() and path.stat().st_size > 0


def _are_old(connection: sa.Connection) -> bool:
    return not FOREIGN_TABLES.isdisjoint(sa.inspect(connection).get_table_names())


def _shown(url: URL) -> str:
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)
