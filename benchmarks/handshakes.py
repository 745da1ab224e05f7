"""What a question to an agent costs over a kept or a fresh connection: `python benchmarks/handshakes.py`.

Mutual TLS with certificates as agents make them, the agent's server in a process of its own. CPU time of the
asking process, best of several batches.
"""

import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from keylime.http.client import Peer
from keylime.http.replies import peer_url
from keylime.http.server import Request, Response, Role, Route, Server
from keylime.identifiers import AgentId
from keylime.pki.agent_certificate import key_pin
from keylime.pki.agent_identity import load_or_create_identity
from keylime.pki.tls import pinned_client_context, server_context

_BATCHES = 5
_ROUNDS = 60


async def _answer(_request: Request) -> Response:
    return Response(results={"quote": "r" * 1500})


def _serve(directory: Path, port: Connection) -> None:
    async def serve() -> None:
        context = server_context(
            certificate=directory / "agent.crt",
            key=directory / "agent.pem",
            key_password=None,
            client_ca=(directory / "client.crt",),
            require_client=True,
        )
        server = Server([Route("GET", "/x", Role.ANONYMOUS, _answer)])
        port.send(server.listen("127.0.0.1", 0, context))
        await asyncio.Event().wait()

    asyncio.run(serve())


@contextmanager
def _agent(directory: Path) -> Iterator[int]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(directory, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


async def _cpu_ms(directory: Path, port: int, pin: bytes, *, fresh: bool) -> float:
    """Milliseconds of CPU for one question."""
    context = pinned_client_context(
        certificate=directory / "client.crt", key=directory / "client.pem", key_password=None
    )
    best = float("inf")
    async with Peer(peer_url("127.0.0.1", port, tls=True), tls=context, pin=pin, timeout_s=20) as peer:
        for _ in range(_BATCHES):
            await peer.request("GET", "/v2.5/x")
            start = time.process_time()
            for _ in range(_ROUNDS):
                if fresh:
                    await peer.close()
                await peer.request("GET", "/v2.5/x")
            best = min(best, time.process_time() - start)
    return best / _ROUNDS * 1e3


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        for name in ("agent", "client"):
            load_or_create_identity(
                directory / f"{name}.crt",
                directory / f"{name}.pem",
                agent=AgentId(name),
                contact="127.0.0.1",
                key_password=None,
            )
        with _agent(directory) as port:
            pin = key_pin((directory / "agent.crt").read_text())
            kept, fresh = (asyncio.run(_cpu_ms(directory, port, pin, fresh=fresh)) for fresh in (False, True))
    table = Table(title="CPU of the verifier for one question, milliseconds")
    for heading in ("kept connection", "fresh connection", "one that lives for five questions"):
        table.add_column(heading, justify="right")
    table.add_row(f"{kept:.2f}", f"{fresh:.2f}", f"{(4 * kept + fresh) / 5:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
