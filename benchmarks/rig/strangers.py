"""Strangers who mean harm, in a process of their own that stands back behind the daemons.

Each attack is a function that prepares what it needs and returns what then goes on until it is cancelled. Its
connections come from many loopback networks, as those of somebody who rents machines come from many of the
internet.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import ssl
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeAlias

import uvloop
import zmq
import zmq.asyncio

from benchmarks.rig.machines import Machine, MeasuredFiles, policy_of
from tests.fakes.software_identity import SoftwareIdentity

_NICENESS = 5
_CHUNK = 256 << 10
_PAUSE_S = 0.05  # after a refusal


@dataclass(frozen=True, slots=True)
class Target:
    """Where the daemons are."""

    port: int
    zmq_port: int = 0
    honest_ids: tuple[str, ...] = ()  # of agents that enrol meanwhile


Attack: TypeAlias = Callable[[Target], Awaitable[object]]


@contextlib.contextmanager
def under_attack(attack: Attack, target: Target) -> Iterator[None]:
    """While the block runs, `attack` runs in another process."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_run, args=(attack, target, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()  # prepared
        ours.send(None)
        yield
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _run(attack: Attack, target: Target, control: Connection) -> None:
    os.nice(_NICENESS)
    logging.disable()  # of connections that are reset
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_attack_until_told(attack, target, control))


async def _attack_until_told(attack: Attack, target: Target, control: Connection) -> None:
    ended = asyncio.Event()
    prepared = attack(target)
    control.send(None)
    control.recv()
    asyncio.get_running_loop().add_reader(control.fileno(), ended.set)
    task = asyncio.ensure_future(prepared)
    await ended.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def hold_bodies(target: Target) -> Awaitable[object]:
    """Sixty bodies of evidence without their last bytes, kept as long as the verifier lets them be."""
    sizes = (4 << 20, 32 << 20)  # what is allowed by default, and what was

    async def hold(number: int) -> None:
        for size in itertools.cycle(sizes):
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await _connect(target, number, secure=True)
                writer.write(_head("/v2.5/verify/evidence", size - 10))
                sending = asyncio.ensure_future(_send_slowly(writer, size - 100))
                await reader.read(1000)
                sending.cancel()
                writer.close()
            await asyncio.sleep(_PAUSE_S)

    return asyncio.gather(*(hold(number) for number in range(60)))


async def _send_slowly(writer: asyncio.StreamWriter, size: int) -> None:
    chunk = b"x" * _CHUNK
    with contextlib.suppress(OSError):
        for _ in range(size // _CHUNK):
            writer.write(chunk)
            await writer.drain()
        await asyncio.sleep(3600)


def ask_for_costly_judgements(target: Target) -> Awaitable[object]:
    """Two clients that have three megabytes of genuine evidence judged, again and again."""
    evidence = costly_evidence(12_000)

    async def ask(number: int) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await _connect(target, number, secure=True)
                while True:
                    writer.write(_head("/v2.5/verify/evidence", len(evidence)) + evidence)
                    if await _code(reader) != 200:
                        await asyncio.sleep(_PAUSE_S)
                        break
                writer.close()

    return asyncio.gather(*(ask(number) for number in range(2)))


def costly_evidence(lines: int) -> bytes:
    """The body of a request about a machine with so many different measured files, all allowed."""
    files = MeasuredFiles(lines)
    machine = Machine(1, files, lines, 0)
    nonce, mask = "a-nonce-of-twenty-ch", 1 << 10
    answer = machine.answer({"nonce": nonce, "mask": hex(mask), "partial": "1", "ima_ml_entry": "0"})
    results = json.loads(answer)["results"]
    data = {
        "quote": results["quote"],
        "nonce": nonce,
        "hash_alg": "sha256",
        "tpm_ek": base64.b64encode(SoftwareIdentity().ek_public).decode(),
        "tpm_ak": base64.b64encode(machine.ak.tpm2b_public).decode(),
        "tpm_policy": json.dumps({"mask": hex(mask)}),
        "runtime_policy": policy_of(lines),
        "ima_measurement_list": results["ima_measurement_list"],
    }
    return json.dumps({"type": "tpm", "data": data}).encode()


def shake_hands(target: Target) -> Awaitable[object]:
    """Two clients that do nothing but begin TLS connections, eight at a time each."""

    async def connect(number: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await _connect(target, number % 2, secure=True)
                writer.transport.abort()

    return asyncio.gather(*(connect(number) for number in range(16)))


def ask_for_identities(target: Target) -> Awaitable[object]:
    """Two clients that have quotes of agents that do not exist checked, eight at a time each."""
    machine = Machine(1, MeasuredFiles(1), 1, 0)
    asked = {"nonce": "a-nonce-of-twenty-ch", "mask": "0x400", "partial": "1", "ima_ml_entry": "0"}
    query = {
        "agent_uuid": "d432fbb3-d2f1-4a97-9ef7-75bd81c00000",
        "quote": json.loads(machine.answer(asked))["results"]["quote"],
        "nonce": asked["nonce"],
        "hash_alg": "sha256",
    }
    request = (
        f"GET /v2.5/verify/identity?{urllib.parse.urlencode(query)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    )

    async def ask(number: int) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await _connect(target, number % 2, secure=True)
                while True:
                    writer.write(request)
                    if await _code(reader) != 200:
                        await asyncio.sleep(_PAUSE_S)
                        break
                writer.close()

    return asyncio.gather(*(ask(number) for number in range(16)))


def flood_with_registrations(target: Target) -> Awaitable[object]:
    """New agents from ten addresses, as fast as they are taken."""
    identities = [SoftwareIdentity() for _ in range(4)]
    bodies = [json.dumps(identity.registration()).encode() for identity in identities]

    async def register(number: int) -> None:
        ids = (f"flood-{number}-{count}" for count in itertools.count())
        await _post_all(target, number, ((one, bodies[number % len(bodies)]) for one in ids))

    return asyncio.gather(*(register(number) for number in range(10)))


def flood_with_ber(target: Target) -> Awaitable[object]:
    """EK certificates that are nothing but structure, as large as a registration may be."""
    nested = b"\x30\x80" * 60_000 + b"\x00\x00" * 60_000
    wide = b"\x30\x83\x03\x0d\x40" + b"\x05\x00" * 100_000
    registration = SoftwareIdentity().registration()
    bodies = [
        json.dumps({**registration, "ekcert": base64.b64encode(one).decode()}).encode()
        for one in (nested, wide)
    ]

    async def register(number: int) -> None:
        ids = (f"ber-{number}-{count}" for count in itertools.count())
        await _post_all(target, number, ((one, bodies[count % 2]) for count, one in enumerate(ids)))

    return asyncio.gather(*(register(number) for number in range(4)))


def flood_pending(target: Target) -> Awaitable[object]:
    """Registrations under the ids of the honest agents, with foreign keys, from eight networks."""
    bodies = [json.dumps(SoftwareIdentity().registration()).encode() for _ in range(8)]

    async def register(number: int) -> None:
        await _post_all(target, number, ((one, bodies[number]) for one in itertools.cycle(target.honest_ids)))

    return asyncio.gather(*(register(number) for number in range(8)))


async def flood_zeromq(target: Target) -> None:
    """Two peers with sixty subscriptions of a megabyte each, and forty more that only connect."""
    context = zmq.asyncio.Context()
    sockets = []
    for _ in range(40):
        sockets.append(socket := context.socket(zmq.XSUB))
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://127.0.0.1:{target.zmq_port}")
    try:
        for count in range(60):
            for socket in sockets[:2]:
                await socket.send(b"\x01" + os.urandom(16) + bytes(1_000_000))
            await asyncio.sleep(0.02 if count else 0.5)
        await asyncio.sleep(3600)
    finally:
        context.destroy(linger=0)


async def _post_all(target: Target, number: int, requests: Iterator[tuple[str, bytes]]) -> None:
    """One registration after the other over kept-alive connections, a pause after each refusal."""
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await _connect(target, number, secure=False)
            for agent_id, body in requests:
                writer.write(_head(f"/v2.5/agents/{agent_id}", len(body)) + body)
                if await _code(reader) in (429, 503):
                    await asyncio.sleep(_PAUSE_S)
            writer.close()
        await asyncio.sleep(_PAUSE_S)


async def _connect(
    target: Target, number: int, *, secure: bool
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection from a network of its own."""
    context = None
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    source = (f"127.{number + 1}.0.1", 0)
    return await asyncio.open_connection("127.0.0.1", target.port, ssl=context, local_addr=source)


def _head(path: str, length: int) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", "", "")
    return "\r\n".join(lines).encode()


async def _code(reader: asyncio.StreamReader) -> int:
    """The code of the next answer, which is read to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
    await reader.readexactly(int(length or b"0"))
    return int(head.split(b" ", 2)[1])
