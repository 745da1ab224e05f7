"""How answers look, and how bodies are read."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedMessage
from keylime.http.exchange import Caller, Request, Response, Role
from keylime.messages.registrar import ActivateRequest, RegisterRequest
from keylime.nesting import MOST_BRACKETS


def request(body: bytes, role: Role = Role.ANONYMOUS) -> Request:
    return Request("POST", "2.5", {}, {}, {}, body, Caller(role, None, "127.0.0.1"))


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (Response(), {"code": 200, "status": "Success", "results": {}}),
        (Response(201), {"code": 201, "status": "Created", "results": {}}),
        (Response(404, status="gone"), {"code": 404, "status": "gone", "results": {}}),
        (Response(results={"a": 1}), {"code": 200, "status": "Success", "results": {"a": 1}}),
    ],
)
def test_the_envelope_repeats_the_code(response: Response, expected: dict[str, object]) -> None:
    assert json.loads(response.encode()) == expected


def test_an_empty_answer_has_no_bytes() -> None:
    assert Response(404, empty=True).encode() == b""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"auth_tag": null}',
        b'{"auth_tag": 1}',
        b'{"auth_tag": NaN}',
        b'{"auth_tag": Infinity}',
        b'{"auth_tag": "a"} x',
        b'{"auth_tag": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"[" * 101,
        b"[" * 100_000,
        b'{"auth_tag":' * 100_000,
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "auth_tag": "a"}',
        b'{"auth_tag": "\\ud800"}',
    ],
)
def test_a_body_of_another_shape_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        request(body).json(ActivateRequest)


def test_a_number_of_a_hundred_thousand_digits_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        request(b'{"port": ' + b"9" * 100_000 + b"}").json(RegisterRequest)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_message_or_the_declared_error(body: bytes) -> None:
    try:
        message = request(body).json(ActivateRequest)
    except MalformedMessage:
        return
    assert isinstance(message, msgspec.Struct)


def test_n12_administrators_alone_may_send_a_body_of_brackets() -> None:
    body = b'{"auth_tag":"a","more":[%s[]]}' % (b"[]," * (MOST_BRACKETS // 2))

    for role in (Role.ANONYMOUS, Role.AGENT):
        with pytest.raises(MalformedMessage, match=f"more than {MOST_BRACKETS} brackets"):
            request(body, role).json(ActivateRequest)
    assert request(body, Role.ADMIN).json(ActivateRequest) == ActivateRequest("a")
