"""Publisher and subscriber over real sockets on 127.0.0.1."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import TypeVar

import pytest
import zmq
import zmq.asyncio

from keylime.errors import ConfigError
from keylime.messages.revocation import SignedRevocation
from keylime.revocation.channel import MAX_MESSAGE_SIZE, RevocationSubscriber
from keylime.revocation.publication import endpoint
from keylime.revocation.publisher import RevocationPublisher
from tests.fakes.loopback import served_by

T = TypeVar("T")
HELLO = SignedRevocation(msg="hello", signature="")


def run(coroutine: Coroutine[object, object, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


async def connected(publisher: RevocationPublisher, subscriber: RevocationSubscriber) -> None:
    """Returns when messages of `publisher` reach `subscriber`, whose queue may then hold more greetings."""
    greeting = asyncio.create_task(anext(subscriber))
    while not greeting.done():
        await publisher.publish(HELLO)
        await asyncio.wait([greeting], timeout=0.02)


async def next_news(subscriber: RevocationSubscriber) -> SignedRevocation:
    """The next message that is no greeting."""
    async for signed in subscriber:
        if signed != HELLO:
            return signed
    raise AssertionError("the subscriber was closed")


def revocation(number: int) -> SignedRevocation:
    return SignedRevocation(msg=f'{{"type": "revocation", "port": {number}}}', signature="c2ln")


def test_every_subscriber_gets_every_message_in_order() -> None:
    async def scenario() -> list[list[SignedRevocation]]:
        publisher = await RevocationPublisher.bound("127.0.0.1", 0)
        subscribers = [RevocationSubscriber([endpoint("127.0.0.1", publisher.port)]) for _ in range(3)]
        for subscriber in subscribers:
            await connected(publisher, subscriber)
        for number in range(5):
            await publisher.publish(revocation(number))
        received = [[await next_news(subscriber) for _ in range(5)] for subscriber in subscribers]
        for subscriber in subscribers:
            subscriber.close()
        await publisher.close()
        return received

    assert run(scenario()) == [[revocation(number) for number in range(5)]] * 3


def test_one_subscriber_listens_to_several_verifiers() -> None:
    async def scenario() -> set[str]:
        publishers = [await RevocationPublisher.bound("127.0.0.1", 0) for _ in range(2)]
        subscriber = RevocationSubscriber([endpoint("127.0.0.1", item.port) for item in publishers])
        received = set()
        for number, publisher in enumerate(publishers):
            await connected(publisher, subscriber)
            await publisher.publish(revocation(number))
            received.add((await next_news(subscriber)).msg)
        subscriber.close()
        for publisher in publishers:
            await publisher.close()
        return received

    assert run(scenario()) == {revocation(0).msg, revocation(1).msg}


def test_the_frame_is_one_json_envelope_without_topic() -> None:
    async def scenario() -> list[bytes]:
        publisher = await RevocationPublisher.bound("127.0.0.1", 0)
        context = zmq.asyncio.Context()
        peer = context.socket(zmq.SUB)
        peer.setsockopt(zmq.SUBSCRIBE, b"")
        peer.connect(endpoint("127.0.0.1", publisher.port))
        receiving = asyncio.ensure_future(peer.recv_multipart())
        while not receiving.done():
            await publisher.publish(HELLO)
            await asyncio.wait([receiving], timeout=0.02)
        peer.close(linger=0)
        context.term()
        await publisher.close()
        return await receiving

    assert run(scenario()) == [b'{"msg":"hello","signature":""}']


def test_garbage_is_skipped_and_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    garbage = [b"", b"\xff\x00", b"{}", b"[1]", b'{"msg": 1, "signature": ""}', b"[" * 5000]

    async def scenario() -> SignedRevocation:
        context = zmq.asyncio.Context()
        stranger = context.socket(zmq.PUB)
        port = stranger.bind_to_random_port("tcp://127.0.0.1")
        subscriber = RevocationSubscriber([endpoint("127.0.0.1", port)])
        greeting = asyncio.create_task(anext(subscriber))
        while not greeting.done():
            await stranger.send(b'{"msg":"hello","signature":""}')
            await asyncio.wait([greeting], timeout=0.02)
        for frame in garbage * 20:
            await stranger.send(frame)
        await stranger.send_multipart([b"topic", b"{}"])
        # What a reference peer sends: JSON with blanks.
        await stranger.send(b'{"msg": "news", "signature": "c2ln"}')
        received = await next_news(subscriber)
        subscriber.close()
        stranger.close(linger=0)
        context.term()
        return received

    with caplog.at_level(logging.WARNING):
        assert run(scenario()) == SignedRevocation(msg="news", signature="c2ln")
    warnings = [record for record in caplog.records if record.name == "keylime.revocation.channel"]
    assert len(warnings) == 1


def test_a_message_of_absurd_size_is_not_taken() -> None:
    async def scenario() -> SignedRevocation:
        context = zmq.asyncio.Context()
        stranger = context.socket(zmq.PUB)
        port = stranger.bind_to_random_port("tcp://127.0.0.1")
        subscriber = RevocationSubscriber([endpoint("127.0.0.1", port)])
        greeting = asyncio.create_task(anext(subscriber))
        while not greeting.done():
            await stranger.send(b'{"msg":"hello","signature":""}')
            await asyncio.wait([greeting], timeout=0.02)
        padding = b" " * MAX_MESSAGE_SIZE
        await stranger.send(b'{"msg":"too big","signature":""}' + padding)
        # libzmq drops the connection and makes a new one; messages go on after that.
        waiting = asyncio.create_task(next_news(subscriber))
        while not waiting.done():
            await stranger.send(b'{"msg":"news","signature":""}')
            await asyncio.wait([waiting], timeout=0.02)
        subscriber.close()
        stranger.close(linger=0)
        context.term()
        return await waiting

    assert run(scenario()).msg == "news"


def test_a_port_that_speaks_another_protocol_is_dialled_again() -> None:
    async def scenario() -> SignedRevocation:
        async def http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            writer.close()
            answered.set()

        answered = asyncio.Event()
        async with served_by(http) as port:
            subscriber = RevocationSubscriber([endpoint("127.0.0.1", port.number)])
            waiting = asyncio.create_task(next_news(subscriber))
            await answered.wait()
        publisher = await RevocationPublisher.bound("127.0.0.1", port.number)
        while not waiting.done():
            await publisher.publish(revocation(1))
            await asyncio.wait([waiting], timeout=0.02)
        subscriber.close()
        await publisher.close()
        return await waiting

    assert run(scenario()) == revocation(1)


def test_closing_ends_the_iteration_of_a_waiting_reader() -> None:
    async def scenario() -> list[SignedRevocation]:
        subscriber = RevocationSubscriber([endpoint("127.0.0.1", 1)])

        async def read() -> list[SignedRevocation]:
            return [signed async for signed in subscriber]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        subscriber.close()
        return await reading

    assert run(scenario()) == []


def test_a_reader_can_be_cancelled() -> None:
    async def scenario() -> bool:
        subscriber = RevocationSubscriber([endpoint("127.0.0.1", 1)])
        reading = asyncio.create_task(anext(subscriber))
        await asyncio.sleep(0)
        reading.cancel()
        result = await asyncio.gather(reading, return_exceptions=True)
        subscriber.close()
        return isinstance(result[0], asyncio.CancelledError)

    assert run(scenario())


def test_a_message_without_subscribers_is_no_error_and_closing_is_prompt() -> None:
    async def scenario() -> None:
        publisher = await RevocationPublisher.bound("127.0.0.1", 0)
        await publisher.publish(revocation(1))
        await publisher.close()

    run(scenario())


def test_a_port_in_use_is_a_configuration_error() -> None:
    async def scenario() -> None:
        publisher = await RevocationPublisher.bound("127.0.0.1", 0)
        try:
            with pytest.raises(ConfigError, match=f"zmq_ip, zmq_port = 127.0.0.1, {publisher.port}"):
                await RevocationPublisher.bound("127.0.0.1", publisher.port)
        finally:
            await publisher.close()

    run(scenario())


def test_an_address_that_is_none_is_a_configuration_error() -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigError, match="revocations cannot be received from tcp://nowhere"):
            RevocationSubscriber(["tcp://nowhere"])

    run(scenario())


def test_an_ipv6_address_is_put_in_brackets() -> None:
    assert endpoint("::1", 8992) == "tcp://[::1]:8992"
    assert endpoint("192.0.2.1", 8992) == "tcp://192.0.2.1:8992"
