"""How deep a JSON text is nested, and how many brackets it has, found before a parser goes into it.

How deep a parser goes by itself depends on the release of Python, and on how much stack there happens to be.
To find out how deep it is takes time and memory for each bracket, of which a text of those alone has many.
"""

import itertools

# Arrays and objects within each other. No document of this protocol comes near it.
MAX_DEPTH = 100

# Of both kinds and in strings too. An IMA list of the largest answer would need one in every name of a file.
MOST_BRACKETS = 1_000_000

_BRACKETS = (b"[", b"]", b"{", b"}")
_AT_ONCE = 1 << 20  # bytes
_LONG = 64 << 10  # bytes
_NEITHER_BRACKET_NOR_QUOTE = bytes(byte for byte in range(256) if byte not in b'[]{}"')
# What a bracket adds to the depth, as a signed byte.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def is_too_deep(text: str | bytes | bytearray) -> bool:
    """Whether a parser of the JSON `text` would be within more than MAX_DEPTH arrays and objects at once.

    Of what is no JSON, all that a parser reads before it finds that out is looked at.
    """
    encoded = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if _opens_few(encoded):
        return False
    steps = memoryview(_brackets(encoded).translate(_STEPS)).cast("b")
    return max(itertools.accumulate(steps), default=0) > MAX_DEPTH


def has_too_many(encoded: bytes | bytearray) -> bool:
    """Whether a text of somebody who is not trusted has more than MOST_BRACKETS; costs next to nothing."""
    if len(encoded) <= MOST_BRACKETS:
        return False
    found = 0
    for first in range(0, len(encoded), _AT_ONCE):
        found += sum(encoded.count(one, first, first + _AT_ONCE) for one in _BRACKETS)
        if found > MOST_BRACKETS:
            return True
    return False


def _opens_few(encoded: bytes | bytearray) -> bool:
    if len(encoded) < _LONG:
        return encoded.count(b"[") + encoded.count(b"{") <= MAX_DEPTH
    # The next one is found a dozen times as fast as all are counted.
    few = MAX_DEPTH
    for bracket in (b"[", b"{"):
        at = encoded.find(bracket)
        while at >= 0:
            few -= 1
            if few < 0:
                return False
            at = encoded.find(bracket, at + 1)
    return True


def _brackets(encoded: bytes | bytearray) -> bytes | bytearray:
    """The brackets outside of strings, in their order."""
    if (
        b"\\" in encoded
    ):  # from the left, so that of a run of backslashes the last one is told from the others
        encoded = encoded.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes with nothing of interest between them change nothing for what stands before or after.
    rest = encoded.translate(None, _NEITHER_BRACKET_NOR_QUOTE).replace(b'""', b"")
    return b"".join(rest.split(b'"')[::2])
