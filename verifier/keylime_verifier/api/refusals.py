"""Which answer of HTTP each refusal is."""

import functools
from collections.abc import Awaitable, Callable, Mapping

from keylime.http.exchange import HttpError, Request, Response
from keylime_verifier.agents.refusals import (
    ChangingHands,
    InTheWay,
    NotApproved,
    NotThere,
    RequestRefused,
    StoredUnreadable,
    UnknownPolicy,
)

Handler = Callable[[Request], Awaitable[Response]]

_CODES: Mapping[type[RequestRefused], int] = {
    NotApproved: 401,
    NotThere: 404,
    UnknownPolicy: 404,
    InTheWay: 409,
    StoredUnreadable: 500,
    ChangingHands: 503,
}


def translated(handler: Handler, codes: Mapping[type[RequestRefused], int] = {}) -> Handler:
    """The handler, with refusals as answers; `codes` are those of this route that differ."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except RequestRefused as error:
            kind = type(error)
            raise HttpError(codes.get(kind, _CODES[kind]), str(error)) from error

    return answer
