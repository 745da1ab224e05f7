"""Base64 as RFC 4648 (4) has it, with nothing between or around."""

import base64

import msgspec


def decode_base64(text: str) -> bytes:
    """What `text` stands for. Raises ValueError for anything else in it."""
    try:  # an eighth of the time; what it refuses may be refused with too few words, or not have to be
        return msgspec.convert(text, bytes)
    except msgspec.ValidationError:
        return base64.b64decode(text, validate=True)
