"""One HTTP answer, read as it comes in: the same however it is cut, and bounded in every part."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import AnswerPutOff, UnusableAnswer
from keylime.http.answer_parser import LONGEST_HEAD, AnswerParser

MOST = 10_000
STEP = 1000


def with_length(body: bytes, *headers: bytes) -> bytes:
    head = b"".join(one + b"\r\n" for one in headers)
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


def chunked(body: bytes, size: int = 7) -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"


def until_closed(body: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + body


FORMS = (with_length, chunked, until_closed)


Form = Callable[[bytes], bytes]


def feed_all(parser: AnswerParser, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        if parser.feed(piece):
            break


def read(*pieces: bytes, most: int = MOST) -> AnswerParser:
    parser = AnswerParser(most)
    feed_all(parser, pieces)
    return parser


def cut(data: bytes, marks: list[int]) -> Iterator[bytes]:
    places = [0, *sorted(mark % (len(data) + 1) for mark in marks), len(data)]
    return (data[begin:end] for begin, end in itertools.pairwise(places) if begin < end)


@given(st.binary(max_size=200), st.sampled_from(FORMS), st.lists(st.integers(0, 10_000), max_size=20))
def test_an_answer_is_the_same_however_it_is_cut(body: bytes, form: Form, marks: list[int]) -> None:
    parser = read(*cut(form(body), marks))
    if form is until_closed:
        assert not parser.is_complete
        parser.end()
    assert (parser.is_complete, parser.status, bytes(parser.body)) == (True, 200, body)
    assert parser.keeps_alive == (form is not until_closed)


@given(st.binary(max_size=300), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", with_length(b"")[:-2]]))
def test_any_bytes_are_an_answer_or_unusable(data: bytes, start: bytes) -> None:
    parser = AnswerParser(100)
    try:
        if not parser.feed(start + data):
            parser.end()
    except UnusableAnswer:
        return
    assert len(parser.body) <= 100


def test_what_comes_after_an_answer_ends_the_connection_and_not_the_answer() -> None:
    for surplus in (b"x", with_length(b"another"), b"\0" * 100):
        parser = read(with_length(b"one") + surplus)
        assert (parser.is_complete, bytes(parser.body), parser.keeps_alive) == (True, b"one", False)
        parser.release()
        with pytest.raises(UnusableAnswer):
            parser.feed(surplus)


@pytest.mark.parametrize(
    ("answer", "keeps"),
    [
        (with_length(b"x"), True),
        (with_length(b"x", b"Connection: close"), False),
        (with_length(b"x").replace(b"1.1", b"1.0"), False),
        (with_length(b"x", b"Connection: keep-alive").replace(b"1.1", b"1.0"), True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
    ],
)
def test_a_connection_is_kept_as_the_answer_says(answer: bytes, keeps: bool) -> None:
    parser = read(answer)
    assert (parser.is_complete, parser.keeps_alive) == (True, keeps)


@pytest.mark.parametrize(
    "answer",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/3.0 200 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA\0: b\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_n12_what_is_ambiguous_or_no_final_answer_is_not_taken(answer: bytes) -> None:
    for pieces in ([answer], [answer[at : at + 1] for at in range(len(answer))]):
        with pytest.raises(UnusableAnswer):
            read(*pieces)


def endless(kind: str) -> Iterator[bytes]:
    """An answer that never comes to its end, and is longer than anybody should read."""
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    begins = {
        "head": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
        "header": (b"HTTP/1.1 200 OK\r\nA: ", b"b"),
        "status": (b"HTTP/1.1 200 O", b"O"),
        "extension": (chunks + b"1;", b"a"),
        "trailers": (chunks + b"1\r\nx\r\n0\r\n", b"A: b\r\n"),
        "trailer": (chunks + b"1\r\nx\r\n0\r\nA: ", b"b"),
    }
    start, unit = begins[kind]
    yield start
    for _ in range(2 * LONGEST_HEAD // STEP):
        yield unit * (STEP // len(unit))


@pytest.mark.parametrize("kind", ["head", "header", "status", "extension", "trailers", "trailer"])
def test_n12_what_is_no_body_is_bounded(kind: str) -> None:
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        for piece in endless(kind):
            taken += len(piece)
            yield piece

    with pytest.raises(UnusableAnswer):
        feed_all(AnswerParser(MOST), pieces())
    assert taken <= LONGEST_HEAD + 2 * STEP


def test_n12_small_chunks_are_no_reason_to_refuse_a_long_body() -> None:
    body = b"x" * 50_000
    pieces = chunked(body, size=1)
    parser = read(*(pieces[at : at + 16384] for at in range(0, len(pieces), 16384)), most=len(body))
    assert bytes(parser.body) == body


@pytest.mark.parametrize("form", FORMS)
def test_n12_a_body_is_asked_for_before_it_is_kept(form: Form) -> None:
    asked: list[int] = []

    def admit(size: int) -> bool:
        asked.append(size)
        return size <= 3000

    with pytest.raises(UnusableAnswer, match="larger than 4000"):
        read(form(b"x" * 5000), most=4000)
    parser = AnswerParser(MOST, admit)
    with pytest.raises(AnswerPutOff) as caught:
        feed_all(parser, (form(b"x" * 5000)[at : at + 100] for at in range(0, 6000, 100)))
    assert caught.value.size > 3000
    assert len(parser.body) <= 3000
    assert len(asked) < 20


def test_half_an_answer_is_told_apart_from_none() -> None:
    assert not AnswerParser(MOST).end()
    for begun in (b"H", b"HTTP/1.1 200 OK\r\n", with_length(b"xyz")[:-1], chunked(b"x" * 20)[:-1]):
        parser = AnswerParser(MOST)
        assert not parser.feed(begun)
        assert parser.has_begun
        with pytest.raises(UnusableAnswer, match="in the middle"):
            parser.end()
