"""Certificates that cost a reader as much as their size allows: deep, in crumbs, with names without end."""

from collections.abc import Callable, Iterator
from pathlib import Path

_GENUINE = Path(__file__).parents[1] / "data" / "vm-debian12" / "direct-efistub" / "nv_1c00002.der"
_ALGORITHM = bytes.fromhex("300d06092a864886f70d01010b0500")


def encoded(tag: int, content: bytes) -> bytes:
    """One ASN.1 element in DER."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content


def _certificate(content: bytes) -> bytes:
    """What looks like a certificate from outside, with `content` in its signed part."""
    return encoded(0x30, encoded(0x30, b"\x02\x01\x05" + content) + _ALGORITHM + b"\x03\x02\x00\x00")


def _filled(size: int, piece: bytes, wrap: Callable[[bytes], bytes]) -> bytes:
    """`wrap` around as many of `piece` as fit into `size` bytes in all."""
    room = size - len(wrap(b"")) - 24
    return wrap(piece * max(1, room // len(piece)))


def _nested(content: bytes, levels: int) -> bytes:
    for _ in range(levels):
        content = b"\x30\x80" + content + b"\0\0"
    return content


def _genuine(
    *, extension: bytes | None = None, names: bytes | None = None, key: bytes | None = None
) -> bytes:
    """A certificate that a strict parser takes, but for what is put into it."""
    name = b"\x30\x00" if names is None else encoded(0x30, names)
    spki = bytes.fromhex("300d06092a864886f70d0101010500") + encoded(
        0x03, b"\0" + encoded(0x30, encoded(0x02, key or b"\x00" + b"\xc1" * 256) + b"\x02\x03\x01\x00\x01")
    )
    fields = (
        b"\xa0\x03\x02\x01\x02\x02\x01\x05"
        + _ALGORITHM
        + name
        + encoded(0x30, encoded(0x17, b"240101000000Z") * 2)
        + name
        + encoded(0x30, spki)
    )
    if extension is not None:
        fields += encoded(0xA3, encoded(0x30, extension))
    return encoded(0x30, encoded(0x30, fields) + _ALGORITHM + encoded(0x03, b"\0" + bytes(64)))


def _in_pieces(oid: str, value: bytes) -> bytes:
    """An extension in pieces, each of which looks like the beginning of one long element."""
    starts = range(6, len(value), 120)
    pieces = [value[:6], *(value[start : start + 120] for start in starts)]
    joined = b"".join(encoded(0x04, piece) for piece in pieces)
    return encoded(0x30, encoded(0x06, bytes.fromhex(oid)) + encoded(0x24, joined))


def _extension(oid: str, value: bytes) -> bytes:
    return encoded(0x30, encoded(0x06, bytes.fromhex(oid)) + encoded(0x04, value))


_ALTERNATIVE_NAMES, _POLICIES, _USAGES, _POINTS = "551d11", "551d20", "551d25", "551d1f"
_RDN = bytes.fromhex("310a30080603550403") + b"\x0c\x01a"

SHAPES: dict[str, Callable[[int], bytes]] = {
    "empty elements": lambda size: _filled(size, b"\x05\x00", _certificate),
    "empty elements after a negative serial number": lambda size: _filled(
        size,
        b"\x05\x00",
        lambda crumbs: encoded(0x30, encoded(0x30, b"\x02\x01\x85" + crumbs) + b"\x30\0\x03\1\0"),
    ),
    "deep and indefinite": lambda size: _filled(size, b"\x05\x00", lambda x: _certificate(_nested(x, 20))),
    "as deep as it goes": lambda size: b"\x30\x80" * (size // 2),
    "indefinite lengths that never end": lambda size: encoded(0x30, b"\x30\x80\x05\x00" * (size // 4 - 4)),
    "indefinite side by side": lambda size: _filled(size, _nested(b"", 18), _certificate),
    "long lengths": lambda size: _filled(size, b"\x05\x84\0\0\0\0", _certificate),
    "lengths of 126 bytes": lambda size: _filled(size, b"\x05\xfe" + bytes(126), _certificate),
    "integers": lambda size: _filled(size, b"\x02\x01\x00", _certificate),
    "one integer": lambda size: _certificate(encoded(0x02, b"\x00" * (size - 64))),
    "a string in pieces": lambda size: _filled(
        size, b"\x04\x01\x05", lambda x: _certificate(encoded(0x24, x))
    ),
    "bits in pieces": lambda size: _filled(size, b"\x03\x01\x00", lambda x: _certificate(encoded(0x23, x))),
    "a name without end": lambda size: _filled(size // 2, _RDN, lambda x: _genuine(names=x)),
    "a relative name without end": lambda size: _filled(
        size // 2, _RDN[2:], lambda x: _genuine(names=encoded(0x31, x))
    ),
    "directory names": lambda size: _filled(
        size,
        b"\xa4\x02\x30\x00",
        lambda x: _genuine(extension=_extension(_ALTERNATIVE_NAMES, encoded(0x30, x))),
    ),
    "host names in pieces": lambda size: _filled(
        size - size // 50,
        b"\x82\x01\x0c",
        lambda x: _genuine(extension=_in_pieces(_ALTERNATIVE_NAMES, encoded(0x30, x))),
    ),
    "host names": lambda size: _filled(
        size, b"\x82\x01a", lambda x: _genuine(extension=_extension(_ALTERNATIVE_NAMES, encoded(0x30, x)))
    ),
    "addresses": lambda size: _filled(
        size,
        b"\x87\x04\x01\x02\x03\x04",
        lambda x: _genuine(extension=_extension(_ALTERNATIVE_NAMES, encoded(0x30, x))),
    ),
    "usages": lambda size: _filled(
        size, b"\x06\x01\x2a", lambda x: _genuine(extension=_extension(_USAGES, encoded(0x30, x)))
    ),
    "policies": lambda size: _filled(
        size, b"\x30\x03\x06\x01\x2a", lambda x: _genuine(extension=_extension(_POLICIES, encoded(0x30, x)))
    ),
    "distribution points": lambda size: _filled(
        size,
        bytes.fromhex("3007a005a003860161"),
        lambda x: _genuine(extension=_extension(_POINTS, encoded(0x30, x))),
    ),
    "unknown extensions": lambda size: b"".join(_numbered_extensions(size)),
    "one large key": lambda size: _genuine(key=b"\x00" + b"\xc1" * (size - 200)),
    "a genuine one with padding": lambda size: _GENUINE.read_bytes().ljust(size, b"\xff"),
    "a genuine one among crumbs": lambda size: _GENUINE.read_bytes() + b"\x05\x00" * ((size - 1100) // 2),
}


def _numbered_extensions(size: int) -> Iterator[bytes]:
    count = (size - 500) // 11
    made = b"".join(
        _extension(f"2a{0x80 | number >> 7:02x}{number & 0x7F:02x}", b"\x05")
        for number in range(max(1, count))
    )
    yield _genuine(extension=made)
