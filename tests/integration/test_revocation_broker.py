"""The publisher's bounds on what strangers cost, and the process that it runs in."""

import asyncio
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

import msgspec
import pytest
import zmq
import zmq.asyncio

from keylime.errors import ConfigError, KeylimeError
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.broker import MAX_MEMORY
from keylime.revocation.broker_process import BrokerProcess, running_broker
from keylime.revocation.channel import RevocationSubscriber
from keylime.revocation.publication import REPLAY_S, endpoint
from keylime.revocation.publisher import (
    MAX_REPLAYED,
    ConnectionLimits,
    MessageLog,
    RevocationPublisher,
    body_digest,
    source_of,
)
from keylime.revocation.zmtp import GREETING, command_frame, message_frame, property_of
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import FAST, install_certificates
from tests.fakes.server_process import ServerProcess

T = TypeVar("T")
HANDSHAKE = GREETING + command_frame(b"READY", property_of(b"Socket-Type", b"SUB"))
SUBSCRIPTION = message_frame(b"\x01")
LIMIT_S = 100.0
ORDINARY = ConnectionLimits()


def run(coroutine: Coroutine[object, object, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, LIMIT_S))


def revocation(number: int) -> SignedRevocation:
    return SignedRevocation(msg=f"message {number}", signature="c2ln")


@asynccontextmanager
async def publishing(limits: ConnectionLimits = ORDINARY) -> AsyncIterator[RevocationPublisher]:
    publisher = await RevocationPublisher.bound("127.0.0.1", 0, limits)
    try:
        yield publisher
    finally:
        await publisher.close()


@contextmanager
def subscribed(port: int) -> Iterator[RevocationSubscriber]:
    subscriber = RevocationSubscriber([endpoint("127.0.0.1", port)])
    try:
        yield subscriber
    finally:
        subscriber.close()


class Stranger:
    """A connection that says what a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def is_dropped(self) -> bool:
        """Once it is, True; an open connection makes the test time out."""
        try:
            while await self.reader.read(1 << 16):
                pass
        except ConnectionError:
            pass
        return True


class Strangers:
    """Makes them, and hangs up for them at the end."""

    def __init__(self) -> None:
        self._made: list[Stranger] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        for stranger in self._made:
            stranger.writer.transport.abort()
            with suppress(OSError):
                await stranger.writer.wait_closed()

    async def dial(self, port: int, said: bytes = b"", address: str = "127.0.0.1") -> Stranger:
        """A connection from `address`."""
        stranger = Stranger(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))
        self._made.append(stranger)
        stranger.writer.write(said)
        return stranger


# Strangers


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        HANDSHAKE + b"\x02" + (1_000_017).to_bytes(8) + b"\x01" + bytes(1000),
        HANDSHAKE + b"".join(message_frame(b"\x01%d" % number) for number in range(20)),
        HANDSHAKE + (SUBSCRIPTION + message_frame(b"\x00")) * 1000,
        HANDSHAKE + message_frame(b"a revocation of its own"),
        HANDSHAKE + SUBSCRIPTION + command_frame(b"PING", bytes(18)) * 1000,
    ],
    ids=["http", "huge topic", "many topics", "in and out", "message", "heartbeats"],
)
def test_v8_who_says_more_than_a_subscriber_has_to_say_is_dropped_and_others_hear_on(said: bytes) -> None:
    async def play() -> None:
        async with publishing() as publisher, Strangers() as strangers:
            with subscribed(publisher.port) as subscriber:
                await publisher.publish(revocation(1))
                assert await anext(subscriber) == revocation(1)
                stranger = await strangers.dial(publisher.port, said)
                assert await stranger.is_dropped()
                await publisher.publish(revocation(2))
                assert await anext(subscriber) == revocation(2)
                assert len(publisher.subscribers) == 1

    run(play())


def test_v8_a_flood_of_large_subscriptions_costs_no_memory_and_delays_nothing() -> None:
    async def flood(port: int) -> None:
        topic = b"\x01" + bytes(500_000)
        for _ in range(60):
            async with Strangers() as strangers:
                stranger = await strangers.dial(port, HANDSHAKE + message_frame(topic))
                assert await stranger.is_dropped()

    async def play() -> None:
        async with running_broker("127.0.0.1", 0) as broker:
            await broker.publish(revocation(1))
            before = memory(broker)
            flooding = asyncio.create_task(flood(broker.port))
            with subscribed(broker.port) as subscriber:
                assert await anext(subscriber) == revocation(1)
                await broker.publish(revocation(2))
                assert await anext(subscriber) == revocation(2)
                await flooding
                await broker.publish(revocation(3))
                assert await anext(subscriber) == revocation(3)
            assert memory(broker) - before < 16 << 20

    run(play())


def test_v8_who_connects_and_says_nothing_makes_room_for_the_next() -> None:
    limits = ConnectionLimits(per_address=3, per_network=100, total=100)

    async def play() -> None:
        async with publishing(limits) as publisher, Strangers() as strangers:
            silent = [await strangers.dial(publisher.port) for _ in range(5)]
            assert await silent[0].is_dropped()
            assert await silent[1].is_dropped()
            with subscribed(publisher.port) as subscriber:
                await publisher.publish(revocation(1))
                assert await anext(subscriber) == revocation(1)
                for _ in range(5):  # a subscriber stays while there is somebody idle
                    await strangers.dial(publisher.port)
                await publisher.publish(revocation(2))
                assert await anext(subscriber) == revocation(2)
                assert len(publisher.subscribers) <= 3

    run(play())


@pytest.mark.parametrize(
    "limits",
    [
        ConnectionLimits(per_address=100, per_network=3, total=100),
        ConnectionLimits(per_address=100, per_network=100, total=3),
    ],
    ids=["network", "all"],
)
def test_v8_at_a_limit_the_fullest_source_loses_its_oldest_connection(limits: ConnectionLimits) -> None:
    async def play() -> None:
        async with publishing(limits) as publisher, Strangers() as strangers:
            quiet = await strangers.dial(publisher.port, HANDSHAKE + SUBSCRIPTION, "127.0.0.9")
            await eventually(lambda: len(publisher.subscribers) == 1)
            loud = []
            for _ in range(6):
                loud.append(await strangers.dial(publisher.port, HANDSHAKE + SUBSCRIPTION, "127.0.0.8"))
                await asyncio.sleep(0)
            for stranger in loud[:-2]:
                assert await stranger.is_dropped()
            await publisher.publish(revocation(1))
            for stranger in (quiet, *loud[-2:]):
                await stranger.reader.readuntil(b"message 1")

    # All of the addresses of 127.0.0.0/24 are one network: by network, the loud address is the fullest.
    run(play())


def test_sources_are_addresses_and_networks() -> None:
    assert source_of("192.0.2.7") == source_of("::ffff:192.0.2.7") == ("192.0.2.7", "192.0.2")
    assert source_of("2001:db8::1")[0] == source_of("2001:db8::2")[0] != source_of("2001:db8:0:1::1")[0]
    assert source_of("fe80::1%eth0") == source_of("fe80::2%eth0")
    assert source_of("somewhere") == ("somewhere", "somewhere")


# What subscribers get


def test_a_new_subscriber_gets_the_recent_messages_and_the_others_nothing_again() -> None:
    async def play() -> None:
        async with publishing() as publisher:
            with subscribed(publisher.port) as first:
                for number in range(3):
                    await publisher.publish(revocation(number))
                assert [await anext(first) for _ in range(3)] == [revocation(number) for number in range(3)]
                with subscribed(publisher.port) as second:
                    heard = [await anext(second) for _ in range(3)]
                    assert heard == [revocation(number) for number in range(3)]
                await publisher.publish(revocation(3))
                assert await anext(first) == revocation(3)

    run(play())


def test_a_subscriber_that_does_not_read_holds_up_nobody_and_goes_on_where_it_stopped() -> None:
    long = [SignedRevocation(msg=f"{number}" * 300_000, signature="") for number in range(1, 9)]

    async def play() -> None:
        async with publishing() as publisher, Strangers() as strangers:
            slow = await strangers.dial(publisher.port, HANDSHAKE + SUBSCRIPTION)
            with subscribed(publisher.port) as subscriber:
                for signed in long:
                    await publisher.publish(signed)
                    assert await anext(subscriber) == signed
            for signed in long:
                body = msgspec.json.encode(signed)
                slow.reader._limit = 1 << 20  # type: ignore[attr-defined]
                assert (await slow.reader.readuntil(body[-20:])).endswith(body[-20:])

    run(play())


@pytest.mark.parametrize("topic", [b"", b"{", b'{"msg":'])
def test_a_topic_is_the_beginning_of_a_message(topic: bytes) -> None:
    async def play() -> bytes:
        context = zmq.asyncio.Context()
        peer = context.socket(zmq.SUB)
        peer.setsockopt(zmq.HEARTBEAT_IVL, 50)
        peer.setsockopt(zmq.SUBSCRIBE, b"another topic")
        peer.setsockopt(zmq.SUBSCRIBE, topic)
        async with publishing() as publisher:
            peer.connect(endpoint("127.0.0.1", publisher.port))
            await publisher.publish(revocation(1))
            received = await peer.recv()
            peer.close(linger=0)
        context.term()
        return bytes(received)

    assert msgspec.json.decode(run(play()), type=SignedRevocation) == revocation(1)


def test_the_log_is_bounded_in_number_bytes_and_time() -> None:
    messages = MessageLog(most=5, most_bytes=100)
    for number in range(8):
        messages.add(b"%d" % number, 0.0)
    assert [message.body for message in messages] == [b"3", b"4", b"5", b"6", b"7"]
    assert (messages.start, messages.end, messages[4].body) == (3, 8, b"4")
    messages.add(bytes(97), 10.0)
    assert [len(message.body) for message in messages] == [1, 1, 1, 97]
    messages.forget_old(REPLAY_S + 1)
    assert len(messages) == 1
    messages.add(bytes(101), 20.0)
    assert len(messages) == 0
    assert messages.start == messages.end == 10


def test_what_was_withdrawn_is_not_in_what_follows_and_costs_nothing_when_it_is_old() -> None:
    messages = MessageLog(most=3)
    for number in range(3):
        messages.add(b"%d" % number, 0.0)
    assert messages.withdraw({body_digest(b"1"), body_digest(b"9")}) == [body_digest(b"1")]
    assert messages.withdraw({body_digest(b"1")}) == []
    assert [messages.is_withdrawn(message) for message in messages] == [False, True, False]
    for number in range(3, 6):
        messages.add(b"%d" % number, 0.0)
    assert not any(messages.is_withdrawn(message) for message in messages)
    assert not messages._withdrawn


def test_a_new_subscriber_gets_nothing_that_was_withdrawn_of_this_broker_or_the_next() -> None:
    looks = []

    async def play() -> None:
        async def look() -> None:
            looks.append(broker.pid)
            await broker.withdraw([revocation(3)] if len(looks) > 1 else [])
            if len(looks) > 1:
                raise KeylimeError("the database is away")

        before = [(revocation(0), 1.0)]
        async with running_broker("127.0.0.1", 0, before, lambda: look()) as broker:
            for number in (1, 2, 3, 4):
                await broker.publish(revocation(number))
            await broker.withdraw([revocation(0), revocation(2), revocation(9)])
            with subscribed(broker.port) as subscriber:
                heard = [await anext(subscriber) for _ in range(3)]
                assert heard == [revocation(number) for number in (1, 3, 4)]
            first = broker.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await eventually(lambda: broker.pid not in (None, first), limit_s=LIMIT_S)
            with subscribed(broker.port) as subscriber:
                assert [await anext(subscriber) for _ in range(2)] == [revocation(1), revocation(4)]

    run(play())
    assert looks == [None, None]


def test_a_new_subscriber_gets_so_many_messages_at_most() -> None:
    async def play() -> SignedRevocation:
        async with publishing() as publisher:
            for number in range(MAX_REPLAYED + 3):
                await publisher.publish(revocation(number))
            with subscribed(publisher.port) as subscriber:
                return await anext(subscriber)

    assert run(play()) == revocation(3)


def test_everywhere_is_ipv4_and_ipv6() -> None:
    async def play() -> None:
        publisher = await RevocationPublisher.bound("*", 0)
        for host in ("127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])):
            reader, writer = await asyncio.open_connection(host, publisher.port)
            assert await reader.readexactly(len(GREETING)) == GREETING
            writer.close()
            await writer.wait_closed()
        await publisher.close()

    run(play())


def test_an_address_that_is_none_of_this_machine_is_a_configuration_error() -> None:
    async def play() -> None:
        with pytest.raises(ConfigError, match=r"zmq_port = 192\.0\.2\.1, 1: Cannot assign"):
            await RevocationPublisher.bound("192.0.2.1", 1)

    run(play())


# The process


def memory(broker: BrokerProcess) -> int:
    lines = Path(f"/proc/{broker.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_broker_that_is_killed_is_replaced_and_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        async with running_broker("127.0.0.1", 0) as broker:
            await broker.publish(revocation(1))
            with subscribed(broker.port) as subscriber:
                assert await anext(subscriber) == revocation(1)
                first = broker.pid
                assert first is not None
                os.kill(first, signal.SIGKILL)
                await eventually(lambda: broker.pid is None, limit_s=LIMIT_S)
                await broker.publish(revocation(2))  # returns when there is a broker again that has it
                assert broker.pid not in (None, first)
                assert await anext(subscriber) == revocation(1)  # it cannot know who had that already
                assert await anext(subscriber) == revocation(2)

    run(play())
    assert "the ZeroMQ broker ended (SIGKILL), starting another in 1 s" in caplog.text


def test_the_broker_limits_itself_and_does_not_speak_to_the_service_manager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/somewhere")

    async def play() -> None:
        async with running_broker("127.0.0.1", 0) as broker:
            await broker.publish(revocation(1))
            pid = broker.pid
            assert pid is not None
            assert resource.prlimit(pid, resource.RLIMIT_AS) == (MAX_MEMORY, MAX_MEMORY)
            assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
            assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0) or (
                os.getpriority(os.PRIO_PROCESS, 0) == 19
            )
            assert b"NOTIFY_SOCKET" not in environment(pid)

    run(play())


def test_signals_to_all_processes_of_a_service_do_not_end_the_broker_before_its_verifier() -> None:
    async def play() -> None:
        async with running_broker("127.0.0.1", 0) as broker:
            await broker.publish(revocation(1))
            pid = broker.pid
            assert pid is not None
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
            await broker.publish(revocation(2))
            assert broker.pid == pid
        assert not is_running(pid)
        listener = socket.create_server(("127.0.0.1", broker.port))  # the port is free at once
        listener.close()

    run(play())


def test_a_broker_that_hangs_is_ended_by_force() -> None:
    async def play() -> None:
        async with running_broker("127.0.0.1", 0) as broker:
            await broker.publish(revocation(1))
            pid = broker.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
        assert not is_running(pid)

    run(play())


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("hang", [False, True], ids=["at work", "hanging"])
def test_a_broker_does_not_outlive_a_verifier_that_is_killed(
    tmp_path: Path, workers: str, *, hang: bool
) -> None:
    install_certificates(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environ = {
        **FAST,
        "KEYLIME_VERIFIER_NUM_WORKERS": workers,
        "KEYLIME_VERIFIER_REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": '["zeromq"]',
        "KEYLIME_VERIFIER_REVOCATIONS_ZMQ_PORT": str(port),
    }
    with ServerProcess("keylime_verifier", tmp_path, **environ) as verifier:
        verifier.ports()
        broker = broker_at(port)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            assert connection.recv(1) == GREETING[:1]  # it is at work
        if hang:
            os.kill(broker, signal.SIGSTOP)
        verifier.send(signal.SIGKILL)
        verifier.ended()
        deadline = time.monotonic() + LIMIT_S
        while is_running(broker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_running(broker)
        verifier.start()  # nothing is left in its way
        verifier.ports()
        broker = broker_at(port)
        assert verifier.stop()[0] == 0
        assert not is_running(broker)


def broker_at(port: int) -> int:
    """The broker that listens at `port`; another worker may say that it listens before this one is up."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := brokers(port)) and time.monotonic() < deadline:
        time.sleep(0.02)
    (broker,) = found
    return broker


def brokers(port: int) -> list[int]:
    """The processes that hold the socket which listens at `port`, and are brokers."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = [row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"]
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if b"keylime.revocation.broker" not in (directory / "cmdline").read_bytes():
                continue
            links = [os.readlink(descriptor) for descriptor in (directory / "fd").iterdir()]
        except OSError:
            continue
        if any(f"socket:[{inode}]" in links for inode in inodes):
            found.append(int(directory.name))
    return found
