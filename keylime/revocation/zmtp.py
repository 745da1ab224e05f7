"""ZMTP 3.0 (ZeroMQ RFC 23) as a publisher speaks it to one subscriber: bytes in, answers and topics out.

No sockets and no clock. The mechanism is NULL. A subscriber has nothing to say but its greeting, a few topics
and heartbeats, so that whatever is longer, or anything else, breaks the protocol.
"""

from keylime.errors import KeylimeError

MAX_FRAME = 255  # bytes of what a subscriber sends: a command, or a subscription with its topic
MAX_TOPICS = 16  # of one subscriber; everybody whom we know asks for the empty one

_GREETING_SIZE = 64
_VERSION_AT = 10
_MECHANISM = slice(12, 32)
_NULL = b"NULL".ljust(20, b"\0")
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + _NULL + bytes(32)
"""What each side begins with: signature, version 3.0, mechanism, and 32 bytes that mean nothing here."""

_MORE, _LONG, _COMMAND = 1, 2, 4
_SUBSCRIBERS = (b"SUB", b"XSUB")
_SUBSCRIBE, _CANCEL = b"\x01", b"\x00"


class ProtocolViolation(KeylimeError):
    """A peer that does not speak as subscribers do, or says more than they may; its connection ends."""


def message_frame(body: bytes) -> bytes:
    """A message of one frame as it is sent."""
    return _frame(0, body)


def command_frame(name: bytes, data: bytes) -> bytes:
    """A command as it is sent."""
    return _frame(_COMMAND, bytes([len(name)]) + name + data)


def property_of(name: bytes, value: bytes) -> bytes:
    """One of the properties in a READY command."""
    return bytes([len(name)]) + name + len(value).to_bytes(4) + value


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) > 255:
        return bytes([flags | _LONG]) + len(body).to_bytes(8) + body
    return bytes([flags, len(body)]) + body


READY = command_frame(b"READY", property_of(b"Socket-Type", b"PUB"))


class SubscriberSession:
    """What one subscriber has said so far. Holds no more of it than one frame and `MAX_TOPICS` topics."""

    __slots__ = ("_buffer", "_is_greeted", "_is_ready", "_topics")

    def __init__(self) -> None:
        self._buffer = b""
        self._is_greeted = False
        self._is_ready = False
        self._topics: dict[bytes, int] = {}  # how many times each was asked for

    @property
    def is_ready(self) -> bool:
        """Whether the handshake is over."""
        return self._is_ready

    @property
    def is_subscribed(self) -> bool:
        """Whether it has asked for anything."""
        return bool(self._topics)

    def wants(self, body: bytes) -> bool:
        """Whether a message is one of those that it has asked for: topics are beginnings of messages."""
        return any(body.startswith(topic) for topic in self._topics)

    def receive(self, data: bytes) -> bytes:
        """Takes what has come, in whatever pieces; what to answer at once. Raises ProtocolViolation."""
        self._buffer += data
        answer = b""
        if not self._is_greeted:
            if not self._take_greeting():
                return b""
            answer = READY
        while (frame := self._next_frame()) is not None:
            answer += self._take(*frame)
        return answer

    def _take_greeting(self) -> bool:
        """Whether it is complete; refused as early as can be."""
        start = self._buffer[: _VERSION_AT + 1]
        # Only the lowest bit of the last byte counts.
        if start[:1] not in (b"", b"\xff") or (len(start) > 9 and not start[9] & 1):
            raise ProtocolViolation("it does not speak ZMTP")
        if len(start) > _VERSION_AT and start[_VERSION_AT] < 3:
            raise ProtocolViolation(f"it speaks ZMTP {start[_VERSION_AT]}, expected 3 or later")
        if len(self._buffer) < _GREETING_SIZE:
            return False
        if self._buffer[_MECHANISM] != _NULL:
            raise ProtocolViolation("it asks for another security mechanism than NULL")
        self._buffer = self._buffer[_GREETING_SIZE:]
        self._is_greeted = True
        return True

    def _next_frame(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if not buffer:
            return None
        flags = buffer[0]
        if flags > _COMMAND | _LONG or flags & _MORE:
            raise ProtocolViolation(f"a subscriber sends no frame with the flags {flags:#x}")
        head = 9 if flags & _LONG else 2
        if len(buffer) < head:
            return None
        size = int.from_bytes(buffer[1:head])
        if size > MAX_FRAME:
            raise ProtocolViolation(f"a frame of {size} bytes, at most {MAX_FRAME} are taken")
        if len(buffer) < head + size:
            return None
        self._buffer = buffer[head + size :]
        return flags, buffer[head : head + size]

    def _take(self, flags: int, body: bytes) -> bytes:
        if flags & _COMMAND:
            size = body[0] if body else 0
            return self._take_command(body[1 : 1 + size], body[1 + size :])
        if not self._is_ready:
            raise ProtocolViolation("it did not say READY")
        self._change(body[:1], body[1:])
        return b""

    def _take_command(self, name: bytes, data: bytes) -> bytes:
        if not self._is_ready:
            if name != b"READY":
                raise ProtocolViolation("it did not say READY")
            if _properties(data).get(b"socket-type") not in _SUBSCRIBERS:
                raise ProtocolViolation("it is no subscriber")
            self._is_ready = True
        elif name == b"SUBSCRIBE":  # since ZMTP 3.1; before, it is a message
            self._change(_SUBSCRIBE, data)
        elif name == b"CANCEL":
            self._change(_CANCEL, data)
        elif name == b"PING":  # two bytes of time-out, then up to 16 that come back
            return command_frame(b"PONG", data[2:18])
        elif name == b"ERROR":
            raise ProtocolViolation("it reports an error")
        return b""  # others are none of our business (RFC 23)

    def _change(self, kind: bytes, topic: bytes) -> None:
        topics = self._topics
        count = topics.get(topic, 0)
        if kind == _SUBSCRIBE:
            if not count and len(topics) >= MAX_TOPICS:
                raise ProtocolViolation(f"more than {MAX_TOPICS} topics")
            topics[topic] = count + 1
        elif kind != _CANCEL:
            raise ProtocolViolation("a subscriber sends no messages")
        elif count > 1:
            topics[topic] = count - 1
        else:
            topics.pop(topic, None)


def _properties(data: bytes) -> dict[bytes, bytes]:
    """The properties of a READY command, by their names in lower case. Raises ProtocolViolation."""
    found = {}
    while data:
        name_end = 1 + data[0]
        value_start = name_end + 4
        value_end = value_start + int.from_bytes(data[name_end:value_start])
        if value_end > len(data) or value_start > len(data):
            raise ProtocolViolation("its READY command is cut off")
        found[data[1:name_end].lower()] = data[value_start:value_end]
        data = data[value_end:]
    return found
