"""What a publisher takes from a subscriber, byte by byte; real peers are met in the integration tests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.revocation.zmtp import (
    GREETING,
    MAX_FRAME,
    MAX_TOPICS,
    READY,
    ProtocolViolation,
    SubscriberSession,
    command_frame,
    message_frame,
    property_of,
)

SUB_READY = command_frame(b"READY", property_of(b"Socket-Type", b"SUB"))
HANDSHAKE = GREETING + SUB_READY
MESSAGE = b'{"msg":"x","signature":""}'


def subscriber(*frames: bytes) -> SubscriberSession:
    session = SubscriberSession()
    session.receive(HANDSHAKE + b"".join(frames))
    return session


def test_a_subscriber_is_greeted_and_gets_what_it_asks_for() -> None:
    session = SubscriberSession()
    assert session.receive(GREETING[:63]) == b""
    assert session.receive(GREETING[63:]) == READY
    assert not session.is_ready
    assert session.receive(SUB_READY) == b""
    assert session.is_ready
    assert not session.is_subscribed
    session.receive(message_frame(b"\x01"))
    assert session.is_subscribed
    assert session.wants(MESSAGE)
    session.receive(message_frame(b"\x00"))
    assert not session.wants(MESSAGE)


def test_topics_are_beginnings_and_each_is_given_up_as_often_as_it_was_asked_for() -> None:
    session = subscriber(
        message_frame(b'\x01{"msg"'), message_frame(b'\x01{"msg"'), message_frame(b"\x01other")
    )
    assert session.wants(MESSAGE)
    assert not session.wants(b"else")
    session.receive(message_frame(b'\x00{"msg"'))
    assert session.wants(MESSAGE)
    session.receive(message_frame(b'\x00{"msg"') + message_frame(b"\x00unknown"))
    assert not session.wants(MESSAGE)


def test_later_subscribers_use_commands() -> None:
    session = subscriber(command_frame(b"SUBSCRIBE", b""))
    assert session.wants(MESSAGE)
    session.receive(command_frame(b"CANCEL", b""))
    assert not session.is_subscribed


def test_a_heartbeat_is_answered_with_its_context() -> None:
    assert subscriber().receive(command_frame(b"PING", b"\0\x0acontext")) == command_frame(
        b"PONG", b"context"
    )
    assert subscriber().receive(command_frame(b"PONG", b"")) == b""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "does not speak ZMTP"),
        (b"\x16\x03\x01", "does not speak ZMTP"),
        (b"\xff" + bytes(9), "does not speak ZMTP"),
        (GREETING[:10] + b"\x01", "speaks ZMTP 1"),
        (GREETING[:12] + b"PLAIN".ljust(20, b"\0") + bytes(32), "another security mechanism"),
        (GREETING + message_frame(b"\x01"), "did not say READY"),
        (GREETING + command_frame(b"HELLO", b""), "did not say READY"),
        (GREETING + command_frame(b"READY", b""), "no subscriber"),
        (GREETING + command_frame(b"READY", property_of(b"Socket-Type", b"PUB")), "no subscriber"),
        (GREETING + command_frame(b"READY", b"\x0bSocket-Type\xff\xff\xff\xffSUB"), "cut off"),
        (GREETING + command_frame(b"READY", b"\xff"), "cut off"),
        (HANDSHAKE + message_frame(b""), "sends no messages"),
        (HANDSHAKE + message_frame(b"\x02"), "sends no messages"),
        (HANDSHAKE + message_frame(b"hello"), "sends no messages"),
        (HANDSHAKE + b"\x01\x01\x01", "no frame with the flags"),
        (HANDSHAKE + b"\xff", "no frame with the flags"),
        (HANDSHAKE + b"\x02" + (MAX_FRAME + 1).to_bytes(8), f"{MAX_FRAME + 1} bytes"),
        (HANDSHAKE + b"\x06" + b"\xff" * 8, "at most 255"),
        (HANDSHAKE + command_frame(b"ERROR", b"\x00"), "error"),
    ],
)
def test_v8_whatever_else_comes_ends_the_connection_before_it_is_read(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        SubscriberSession().receive(data)


def test_v8_topics_of_one_subscriber_are_few() -> None:
    topics = [message_frame(b"\x01" + bytes([number])) for number in range(MAX_TOPICS)]
    session = subscriber(*topics, *topics)
    with pytest.raises(ProtocolViolation, match=f"more than {MAX_TOPICS} topics"):
        session.receive(message_frame(b"\x01one more"))


@given(st.lists(st.integers(1, 90), max_size=20))
def test_pieces_make_no_difference(sizes: list[int]) -> None:
    data = (
        HANDSHAKE
        + message_frame(b"\x01")
        + command_frame(b"PING", b"\0\0a")
        + message_frame(b"\x01" + bytes(200))
    )
    session, answer = SubscriberSession(), b""
    for size in sizes:
        answer += session.receive(data[:size])
        data = data[size:]
    answer += session.receive(data)
    assert answer == READY + command_frame(b"PONG", b"a")
    assert session.wants(MESSAGE)


@given(st.binary(max_size=600))
def test_v8_nothing_that_a_stranger_says_is_more_than_a_violation(data: bytes) -> None:
    for start in (b"", GREETING, HANDSHAKE):
        session = SubscriberSession()
        try:
            session.receive(start + data)
        except ProtocolViolation:
            continue
        assert len(session._buffer) <= MAX_FRAME + 9
