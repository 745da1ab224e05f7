import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.documents.strict_json import load_document
from keylime.errors import PolicyError


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2.5, true, null, "\u00e9"]}', r'{"\u0061": "\ud83d\ude00"}', "[]", "7"]
)
def test_a_strict_text_is_read_whether_it_is_decoded_or_not(text: str) -> None:
    assert load_document(text, "x") == load_document(text.encode(), "x") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the list is not valid JSON"),
        ("{} x", "the list is not valid JSON"),
        ("\ufeff{}", "the list begins with a byte order mark: save it as UTF-8 without one"),
        (b"\xef\xbb\xbf[]", "the list begins with a byte order mark"),
        ("[NaN]", "NaN is no JSON number"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ("9" * 5000, "the list is not valid JSON"),
        ("[" * 100_000, "the list is nested too deeply"),
        ("[" * 101 + "]" * 101, "the list is nested too deeply: more than 100"),
        (b'["\xff"]', "the list is not UTF-8 text"),
        (b'["\xed\xa0\x80"]', "the list is not UTF-8 text"),
        ('["\udcff"]', "the list is not UTF-8 text"),
        (r'["\ud800"]', "the list is not UTF-8 text"),
        (r'{"\udc00": 1}', "the list is not UTF-8 text"),
        ("[]".encode("utf-16-le"), "the list is not valid JSON"),
        ('{"b": 1, "a": 1, "c": 1, "a": 2}', "the key 'a' is given twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "the key 'a' is given twice"),
        (r'{"a": 1, "\u0061": 1}', "the key 'a' is given twice"),
    ],
    ids=str,
)
def test_any_other_text_is_refused_with_its_reason(text: str | bytes, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        load_document(text, "the list")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda item: st.lists(item) | st.dictionaries(st.text(), item),
    )
)
def test_what_python_writes_is_read_again(value: Any) -> None:
    assert load_document(json.dumps(value), "x") == value
    assert load_document(json.dumps(value, ensure_ascii=False).encode(), "x") == value
