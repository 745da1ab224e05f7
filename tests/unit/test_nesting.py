"""The bound on nesting, beside a reader that goes from character to character."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedMessage
from keylime.messages.envelope import parse_body, parse_envelope
from keylime.nesting import MAX_DEPTH, MOST_BRACKETS, has_too_many, is_too_deep


def depth(text: str) -> int:
    """The slow and plain answer."""
    deepest, now, in_string, escaped = 0, 0, False, False
    for character in text:
        if in_string:
            in_string = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            in_string = True
        elif character in "[{":
            now += 1
            deepest = max(deepest, now)
        elif character in "]}":
            now -= 1
    return deepest


def nested(opening: str, closing: str, times: int) -> str:
    return opening * times + "1" + closing * times


@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"]}":', "}]"), (r'["\\", ', "]")]
)
def test_the_bound_is_exact(opening: str, closing: str) -> None:
    most = MAX_DEPTH // depth(opening)

    assert not is_too_deep(nested(opening, closing, most))
    assert is_too_deep(nested(opening, closing, most + 1))
    assert is_too_deep(nested(opening, closing, most + 1).encode())
    assert is_too_deep(bytearray(nested(opening, closing, most + 1).encode()))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_the_bound_is_as_exact_in_a_long_text(opening: str, closing: str) -> None:
    most, long = MAX_DEPTH // depth(opening), " " * 100_000

    assert not is_too_deep(long + nested(opening, closing, most) + long)
    assert is_too_deep(long + nested(opening, closing, most + 1) + long)
    assert not is_too_deep("[" + ",".join([nested(opening, closing, most - 1)] * 3) + long + "]")


def test_what_is_never_closed_is_as_deep() -> None:
    assert is_too_deep("[" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("closing", ['"]"', r'"\"]"', r'"\\\"]"', r'"\\","]"'])
def test_a_bracket_in_a_string_closes_nothing(closing: str) -> None:
    assert is_too_deep(f"[{closing}," * (MAX_DEPTH + 1))


@pytest.mark.parametrize("text", ['"["', r'"\"["', r'"\\\"{"', r'"\\","["', '"\ud800["'])
def test_a_bracket_in_a_string_opens_nothing(text: str) -> None:
    assert not is_too_deep(f"[{text}," + ",".join([text] * 2 * MAX_DEPTH) + "]")


def test_long_and_flat_is_not_deep() -> None:
    assert not is_too_deep(json.dumps({f"/usr/bin/[{number}": [{}, "{"] for number in range(1000)}))


@given(
    st.recursive(
        st.text(alphabet='[]{}"\\a\u00e9'),
        lambda item: st.lists(item) | st.dictionaries(st.text('["\\'), item),
    ),
    st.integers(MAX_DEPTH - 4, MAX_DEPTH),
)
def test_any_document_is_found_as_deep_as_it_is(value: Any, around: int) -> None:
    text = nested("[", "]", around).replace("1", json.dumps([value] * 3), 1)

    assert is_too_deep(text) == (depth(text) > MAX_DEPTH)


@pytest.mark.parametrize("text", ["[]", "{}", '"["', '"]",'])
def test_n12_the_bound_on_brackets_is_exact(text: str) -> None:
    each = sum(map(text.count, "[]{}"))
    most = (text * (MOST_BRACKETS // each)).encode()

    assert not has_too_many(most)
    assert has_too_many(most + b"]")
    assert has_too_many(bytearray(most + b"{"))
    spread = most.replace(b"]", b"]   ", MOST_BRACKETS)
    assert not has_too_many(spread)
    assert has_too_many(spread + b"}")


def test_n12_a_body_of_brackets_is_refused_to_all_who_are_not_trusted() -> None:
    body = b'{"code":200,"results":[%s[]]}' % (b'"[",[],' * (MOST_BRACKETS // 2))

    with pytest.raises(MalformedMessage, match=f"more than {MOST_BRACKETS} brackets"):
        parse_envelope(body)
    with pytest.raises(MalformedMessage, match=f"more than {MOST_BRACKETS} brackets"):
        parse_body(body, dict[str, Any])
    assert bytes(parse_envelope(body, is_trusted=True).results).endswith(b"[]]")


def test_those_who_are_trusted_may_nest_no_deeper_either() -> None:
    with pytest.raises(MalformedMessage, match="within each other"):
        parse_body(nested("[", "]", MAX_DEPTH + 1).encode(), list[Any], is_trusted=True)
