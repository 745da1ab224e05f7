"""Base64 is taken and refused as the standard library does, however it is decoded."""

import base64

from hypothesis import example, given
from hypothesis import strategies as st

from keylime.base64_text import decode_base64


def outcome(text: str, *, by_library: bool) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if by_library else decode_base64(text)
    except ValueError:
        return None


@given(st.binary())
def test_what_was_encoded_is_decoded(data: bytes) -> None:
    assert decode_base64(base64.b64encode(data).decode()) == data


@given(st.text(st.sampled_from("Aa9+/=-_ \n%\0é\ud800"), max_size=9))
@example("YQ=")
@example("YR==")
@example("YWI==")
@example("YWJj=")
@example("YQ==YQ==")
@example("=")
@example("A")
def test_all_else_is_taken_or_refused_as_by_the_library(text: str) -> None:
    assert outcome(text, by_library=False) == outcome(text, by_library=True)
