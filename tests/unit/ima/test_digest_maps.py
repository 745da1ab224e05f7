"""Reading digests all at once says the same as reading them one by one, and so does writing them."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keylime.errors import PolicyError
from keylime.ima.digest_maps import (
    MAX_DIGESTS_PER_NAME,
    DigestMap,
    digest_texts,
    encode_digest_map,
    read_digest_map,
)

A, B, C = "ab" * 32, "cd" * 32, "ef" * 20
ODD_ONE = {"zzz": [f"sha256:{A}"]}  # has all others read one by one, too

hex_digits = st.integers(1, 130).flatmap(
    lambda count: st.text("0123456789abcdef", min_size=count, max_size=count)
)
good = st.sampled_from([40, 64, 96, 128]).flatmap(
    lambda count: st.text("0123456789abcdef", min_size=count, max_size=count)
)
broken = (
    hex_digits
    | st.sampled_from([A.upper(), "ab " * 16, "ab" * 19 + " a", "٣" * 64, f"sha1:{C}", f"md5:{A}", A + "\n"])
    | st.none()
    | st.integers()
    | st.lists(good, max_size=2)
)
lists = st.lists(good, min_size=1, max_size=12)
anything = (
    st.lists(good | broken, max_size=3) | good | st.none() | st.dictionaries(good, st.none(), max_size=2)
)


def read(members: dict[str, Any]) -> DigestMap | str:
    try:
        return read_digest_map(members, "digests")
    except PolicyError as error:
        return str(error)


@given(st.dictionaries(st.text(max_size=5), lists, max_size=8))
@example({"a": [A], "b": [B]})
@example({"a": [A], "b": [C, A, A]})
@example({"a": [A] * 20})
def test_digests_are_read_at_once_as_one_by_one(members: dict[str, list[str]]) -> None:
    one_by_one = read_digest_map({**members, **ODD_ONE}, "digests")
    together = read_digest_map({**members, "zzz": [A]}, "digests")
    assert together == one_by_one
    assert list(together) == list(one_by_one)
    assert [type(one) for one in together.values()] == [type(one) for one in one_by_one.values()]
    tuples = {name: tuple(values) for name, values in members.items()}
    assert read_digest_map(tuples, "digests") == read_digest_map(members, "digests")


@given(st.dictionaries(st.text(max_size=5), anything, max_size=4))
@example({"a": ["ab " * 16 + "abababababababab"]})
@example({"a": [A], "b": {A: 1}})
@example({"a": [A], "b": A})
@example({"a": ["a" * 41, "a" * 43]})
@example({"a": [A] * (MAX_DIGESTS_PER_NAME + 1)})
@example({"a": [A], "b": []})
def test_what_is_wrong_is_told_alike(members: dict[str, Any]) -> None:
    told, one_by_one = read(members), read({**members, **ODD_ONE})
    if isinstance(told, str) or isinstance(one_by_one, str):
        assert told == one_by_one
    else:
        assert {**told, "zzz": (bytes.fromhex(A),)} == one_by_one


@pytest.mark.parametrize("size", [40, 42, 64, 128])
def test_digests_of_any_even_length_are_digests(size: int) -> None:
    assert read_digest_map({"a": ["a" * size], "b": [A]}, "digests")["a"] == (bytes.fromhex("a" * size),)


@given(st.dictionaries(st.text(max_size=5), lists, max_size=8))
@example({'\x7f\x1f"\\/\u2028é😀': [A], "\ue000": [B], "\U00010000": [C]})
def test_the_canonical_text_is_what_json_would_write(members: dict[str, list[str]]) -> None:
    digests = read_digest_map(members, "digests")
    texts = {name: sorted(digest.hex() for digest in allowed) for name, allowed in digests.items()}
    assert {name: list(found) for name, found in digest_texts(digests).items()} == texts
    assert encode_digest_map(digests).decode() == json.dumps(
        texts, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
