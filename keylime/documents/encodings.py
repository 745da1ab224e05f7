"""Texts of operators that are not UTF-8: what to say of them."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with a file, in which line, and what to do about it."""
    if error.object.startswith(_UTF16):
        reason = "it is UTF-16, by its mark"
    else:
        line = error.object.count(b"\n", 0, error.start) + 1
        reason = f"{error.reason} in line {line},"
    return f"not UTF-8 text: save it as UTF-8; {reason} at byte {error.start}"
