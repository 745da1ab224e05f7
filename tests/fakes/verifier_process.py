"""Real keylime_verifier processes that share a database, as several verifiers of a site do."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp
import sqlalchemy as sa

from keylime_verifier.agents.shards import shard_of
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.client_session import client_session
from tests.fakes.databases import engine_for
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import (
    FAST,
    RunningVerifier,
    install_certificates,
    verifier_authority,
    verifier_config,
)
from tests.fakes.server_process import ServerProcess
from tests.fakes.tls_material import client_context


class VerifierProcess(ServerProcess):
    """One process beside whose event loop the test's own goes on, because agents live there."""

    def __init__(
        self, work_dir: Path, name: str, environ: Mapping[str, str], *, prefix: Sequence[str] = ()
    ) -> None:
        """See `ServerProcess`."""
        options = {**FAST, **environ}
        super().__init__("keylime_verifier", work_dir, name=name, prefix=prefix, **options)
        self.members = int(options["KEYLIME_VERIFIER_NUM_WORKERS"])

    async def listening(self) -> int:
        """The port that it serves on, as soon as it does."""
        (port,) = await asyncio.to_thread(self.ports)
        return port

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status, after this signal."""
        status, _ = await asyncio.to_thread(self.stop, number)
        return status


class Verifiers:
    """Some verifiers of one site; `api` calls one of them, `query` reads their database."""

    def __init__(self, work_dir: Path, url: str, processes: list[VerifierProcess]) -> None:
        self.processes = processes
        self._work_dir = work_dir
        self._engine = engine_for(url)
        self._opened = client_session()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = await self._opened.__aenter__()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self._session is not None:
            await self._opened.__aexit__(None, None, None)
        self._engine.dispose()

    async def api(self, process: VerifierProcess) -> RunningVerifier:
        """How an administrator calls one of them."""
        assert self._session is not None
        context = client_context(verifier_authority(), verifier_authority().issue("operator"))
        config = verifier_config(self._work_dir)
        return RunningVerifier(await process.listening(), config, self._session, context)

    def query(self, query: str) -> list[tuple[object, ...]]:
        """Rows of the database."""
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]

    def follow(self, url: str) -> None:
        """From now on `query` and `change` go to another server."""
        self._engine.dispose()
        self._engine = engine_for(url)

    def change(self, *statements: str) -> None:
        """Changes the database beside the verifiers, in one transaction."""
        with self._engine.connect() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(sa.text(statement))
            connection.commit()

    async def pause(self, process: VerifierProcess) -> None:
        """Stops a process as a debugger would; not in the middle of a write to SQLite, which blocks all."""
        while True:
            process.send(signal.SIGSTOP)
            if self._engine.dialect.name != "sqlite" or await asyncio.to_thread(self._can_write):
                return
            process.send(signal.SIGCONT)

    def _can_write(self) -> bool:
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return True
        except sa.exc.OperationalError:
            return False

    def owner_of(self, agent: AttestingAgent) -> VerifierProcess | None:
        """The process that polls an agent, according to the database."""
        shard = shard_of(agent.agent_id)  # type: ignore[arg-type]  # ids of tests are what they should be
        names = self.query(
            f"SELECT name FROM shards JOIN members ON members.member_id = shards.owner WHERE shard = {shard}"  # noqa: S608 - a number
        )
        by_pid = {process.pid: process for process in self.processes}
        return by_pid.get(int(str(names[0][0]).rpartition(":")[2])) if names else None

    async def owners(self, agent: AttestingAgent) -> tuple[VerifierProcess, VerifierProcess]:
        """The process that polls an agent, and another one."""
        owner = await eventually(lambda: self.owner_of(agent))
        return owner, next(process for process in self.processes if process is not owner)

    async def until_shared(self, count: int | None = None, *, limit_s: float = 15.0) -> float:
        """Seconds until `count` members have their fair shares of the shards (None: all there are).

        None is left without an owner: what was given up for a member is not yet that member's.
        """
        began = time.monotonic()
        shares = "SELECT owner, count(*) FROM shards GROUP BY owner"
        wanted = sum(process.members for process in self.processes) if count is None else count

        def is_fair() -> bool:
            owned = {owner: int(str(number)) for owner, number in self.query(shares)}
            return (
                None not in owned and len(owned) == wanted and max(owned.values()) - min(owned.values()) <= 1
            )

        await eventually(is_fair, limit_s=limit_s)
        return time.monotonic() - began


@asynccontextmanager
async def verifiers(
    work_dir: Path,
    url: str | None,
    environ: Mapping[str, str],
    *each: Mapping[str, str],
    members: int | None = None,
) -> AsyncIterator[Verifiers]:
    """Processes that serve and share the agents of one database (None: a SQLite file).

    As many as there are environments in `each`, to which the options that all have are added. `members` is
    how many have shards, if they have several workers.
    """
    options = {} if url is None else {"KEYLIME_VERIFIER_DATABASE_URL": url}
    processes = [
        VerifierProcess(work_dir, f"v{number}", {**options, **environ, **own})
        for number, own in enumerate(each, 1)
    ]
    async with sharing(work_dir, url, processes, members) as site:
        yield site


@asynccontextmanager
async def sharing(
    work_dir: Path, url: str | None, processes: list[VerifierProcess], members: int | None = None
) -> AsyncIterator[Verifiers]:
    """The same with processes that have not been started yet; `url` is how the test reaches the database."""
    install_certificates(work_dir)
    place = f"sqlite:///{work_dir / 'cv_data.sqlite'}" if url is None else url
    async with AsyncExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
            process.start()
        for process in processes:
            await process.listening()
        site = await stack.enter_async_context(Verifiers(work_dir, place, processes))
        await site.until_shared(members)
        yield site
