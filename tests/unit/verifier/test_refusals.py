import asyncio

import pytest

from keylime.http.exchange import Caller, HttpError, Request, Response, Role
from keylime_verifier.agents import refusals
from keylime_verifier.agents.refusals import RequestRefused, UnknownPolicy
from keylime_verifier.api.refusals import Handler, translated

CODES = {
    "NotApproved": 401,
    "NotThere": 404,
    "UnknownPolicy": 404,
    "InTheWay": 409,
    "StoredUnreadable": 500,
    "ChangingHands": 503,
}
REQUEST = Request("PUT", "2.5", {}, {}, {}, b"", Caller(Role.ADMIN, "admin", "127.0.0.1"))
KINDS = [
    kind
    for kind in vars(refusals).values()
    if isinstance(kind, type) and issubclass(kind, RequestRefused) and kind is not RequestRefused
]


def answer(handler: Handler) -> Response:
    async def act() -> Response:
        return await handler(REQUEST)

    return asyncio.run(act())


@pytest.mark.parametrize("kind", KINDS)
def test_every_refusal_is_an_answer_with_its_words(kind: type[RequestRefused]) -> None:
    async def handler(_request: Request) -> Response:
        raise kind("the words")

    with pytest.raises(HttpError) as answered:
        answer(translated(handler))
    assert (answered.value.code, answered.value.status) == (CODES[kind.__name__], "the words")


def test_a_route_may_answer_otherwise() -> None:
    async def handler(_request: Request) -> Response:
        raise UnknownPolicy("not there")

    with pytest.raises(HttpError) as answered:
        answer(translated(handler, {UnknownPolicy: 409}))
    assert answered.value.code == 409
