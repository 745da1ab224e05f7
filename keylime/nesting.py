"""How deep a JSON text is nested, found before a parser goes into it.

How deep a parser goes by itself depends on the release of Python, and on how much stack there happens to be.
"""

import itertools

# Arrays and objects within each other. No document of this protocol comes near it.
MAX_DEPTH = 100

_NEITHER_BRACKET_NOR_QUOTE = bytes(byte for byte in range(256) if byte not in b'[]{}"')
# What a bracket adds to the depth, as a signed byte.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def is_too_deep(text: str | bytes | bytearray) -> bool:
    """Whether a parser of the JSON `text` would be within more than MAX_DEPTH arrays and objects at once.

    Of what is no JSON, all that a parser reads before it finds that out is looked at.
    """
    encoded = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if encoded.count(b"[") + encoded.count(b"{") <= MAX_DEPTH:
        return False
    steps = memoryview(_brackets(encoded).translate(_STEPS)).cast("b")
    return max(itertools.accumulate(steps), default=0) > MAX_DEPTH


def _brackets(encoded: bytes | bytearray) -> bytes | bytearray:
    """The brackets outside of strings, in their order."""
    if (
        b"\\" in encoded
    ):  # from the left, so that of a run of backslashes the last one is told from the others
        encoded = encoded.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes with nothing of interest between them change nothing for what stands before or after.
    rest = encoded.translate(None, _NEITHER_BRACKET_NOR_QUOTE).replace(b'""', b"")
    return b"".join(rest.split(b'"')[::2])
