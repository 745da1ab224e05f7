"""Blocks of server-sent events, however the network cuts them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import UnusableAnswer
from keylime.http.event_source import BlockReader, StreamedEvent

STREAM = (
    b"retry: 1000\n\nid: 0\n\nid: 17\ndata: {}\n\n"
    b"event: gap\nid: 20\ndata: 1\ndata: 2\n\n:\n\nid:5\ndata:\xff\n\n"
)
EXPECTED = [
    StreamedEvent("", "message", b""),
    StreamedEvent("0", "message", b""),
    StreamedEvent("17", "message", b"{}"),
    StreamedEvent("20", "gap", b"1\n2"),
    StreamedEvent("", "message", b""),
    StreamedEvent("5", "message", b"\xff"),
]


@given(st.lists(st.integers(min_value=0, max_value=len(STREAM)), max_size=8))
def test_blocks_are_whole_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    reader = BlockReader()
    places = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[first:then] for first, then in itertools.pairwise(places)]
    assert [event for part in parts for event in reader.feed(part)] == EXPECTED


@given(st.binary(max_size=200))
def test_no_bytes_are_a_defect(data: bytes) -> None:
    list(BlockReader().feed(data))


def test_what_does_not_end_is_not_kept() -> None:
    reader = BlockReader(most=10)
    assert list(reader.feed(b"data: 123")) == []
    with pytest.raises(UnusableAnswer, match="more than 10 bytes"):
        list(reader.feed(b"4567"))
