"""What is read by its types is what the strict reader reads, and never what it refuses."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.documents.strict_json import load_document
from keylime.errors import PolicyError
from keylime.ima.runtime_policy import EMPTY_POLICY, parse_runtime_policy
from keylime.ima.usual_policy import load_usual_policy

A = "ab" * 32
NAMES = st.text(max_size=4) | st.sampled_from(['"', "\\", '\\"', "a\\\\", ":", "[[", "/a b", "\x00"])
DIGESTS = st.dictionaries(NAMES, st.lists(st.sampled_from([A, "", '"']), max_size=3), max_size=3)
INTEGERS = st.integers(-1, 3) | st.sampled_from([1 << 63, 1 << 64, 10**30])
META = st.fixed_dictionaries({"version": INTEGERS, "generator": INTEGERS}, optional={"timestamp": NAMES})
IMA = st.fixed_dictionaries(
    {"ignored_keyrings": st.lists(NAMES, max_size=2), "log_hash_alg": NAMES, "dm_policy": st.none()}
)
POLICIES = st.fixed_dictionaries(
    {
        "meta": META,
        "release": INTEGERS,
        "digests": DIGESTS,
        "excludes": st.lists(NAMES, max_size=2),
        "keyrings": DIGESTS,
        "ima": IMA,
        "ima-buf": DIGESTS,
        "verification-keys": NAMES,
    }
)
PIECES = st.sampled_from(
    [
        *'"\\[]{}:,0-.eE \n\t\x00\x7f\ufeffé',
        *('""', '\\"', "\\\\", "\\u0061", "\\ud800", "\\udc00", "\\ud83d\\ude00", "\\u00e9", "\\/", "\\a"),
        *("null", "true", "NaN", "1e3", "1.0", "9" * 5000, '"a":', '"a": 1,', '"/a": ["b"],', '"x": [[[]]],'),
        *(
            '"release": 0,',
            '"meta": {"version": 1, "generator": 1},',
            '"ima-buf": {},',
            '"\\u0072elease": 0,',
        ),
    ]
)


def with_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: with_lists(one) for name, one in value.items()}
    return [with_lists(one) for one in value] if isinstance(value, list | tuple) else value


def check(text: str) -> None:
    """What is read by types at all is what is read strictly."""
    found = load_usual_policy(text.encode())
    if found is not None:
        read = load_document(text, "x")
        assert with_lists(found) == read
        assert json.dumps(with_lists(found), sort_keys=True) == json.dumps(read, sort_keys=True)


@given(POLICIES, st.booleans(), st.sampled_from([None, 1]))
def test_usual_policies_are_read(policy: dict[str, Any], in_ascii: bool, indent: int | None) -> None:
    text = json.dumps(policy, ensure_ascii=in_ascii, indent=indent)
    assert with_lists(load_usual_policy(text.encode())) == load_document(text, "x") == policy


@given(POLICIES, st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 3), PIECES), min_size=1, max_size=3))
def test_whatever_is_done_to_a_text_it_is_read_as_strictly(
    policy: dict[str, Any], changes: list[tuple[int, int, str]]
) -> None:
    text = json.dumps(policy)
    for at, removed, piece in changes:
        at %= len(text) + 1
        text = text[:at] + piece + text[at + removed :]
    check(text)


@given(POLICIES, st.integers(0, 1000), PIECES)
def test_what_stands_between_members_is_read_as_strictly(policy: dict[str, Any], at: int, piece: str) -> None:
    text = json.dumps(policy)
    places = [place for place, char in enumerate(text) if char in "{,["]
    place = 1 + places[at % len(places)]
    check(text[:place] + piece + text[place:])


TWICE = [
    EMPTY_POLICY.replace('"release"', '"digests": {}, "release"'),
    EMPTY_POLICY.replace('"version": 1', '"version": 1, "version": 1'),
    EMPTY_POLICY.replace('"digests": {}', f'"digests": {{"/a": ["{A}"], "/a": ["{A}"]}}'),
    EMPTY_POLICY.replace('"digests": {}', f'"digests": {{"/a": ["{A}"], "/\\u0061": ["{A}"]}}'),
    EMPTY_POLICY.replace('"digests": {}', f'"digests": {{"\\\\": ["{A}"], "\\\\": ["{A}"]}}'),
    EMPTY_POLICY.replace('"ima-buf": {}', '"ima-buf": {"\\"": [], "\\"": []}'),
]


@pytest.mark.parametrize("text", TWICE)
def test_a_key_that_is_given_twice_is_left_to_the_strict_reader(text: str) -> None:
    assert load_usual_policy(text.encode()) is None
    with pytest.raises(PolicyError, match="is given twice"):
        parse_runtime_policy(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        "\ufeff" + EMPTY_POLICY,
        EMPTY_POLICY.replace('"release": 0', '"release": 0.0'),
        EMPTY_POLICY.replace('"release": 0', f'"release": {"9" * 5000}'),
        EMPTY_POLICY.replace('"release"', '"more": 0, "release"'),
        EMPTY_POLICY.replace('"dm_policy": null', '"dm_policy": {}'),
        EMPTY_POLICY.replace('"excludes": []', '"excludes": ["\\ud800"]'),
    ],
    ids=range(10),
)
def test_anything_else_is_left_to_the_strict_reader(text: str) -> None:
    assert load_usual_policy(text.encode()) is None


def test_bytes_that_are_no_utf_8_are_left_to_the_strict_reader() -> None:
    assert (
        load_usual_policy(EMPTY_POLICY.encode().replace(b'"excludes": []', b'"excludes": ["\xff"]')) is None
    )
    assert load_usual_policy(EMPTY_POLICY.encode("utf-16")) is None
