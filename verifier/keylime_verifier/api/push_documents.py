"""Answers of API 3.0: documents of JSON:API, its errors, and refusals that have no body."""

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from keylime.errors import MalformedMessage
from keylime.http.exchange import Request, Response, refusal, retry_after
from keylime.messages.envelope import parse_body
from keylime.messages.push_document import (
    CONTENT_TYPE,
    Document,
    ErrorDocument,
    encode_document,
    error_document,
)
from keylime.messages.push_session import RESOURCE_TYPE as SESSION
from keylime_verifier.pushing.attestations import NotTheOwner, PushRefused, Unauthenticated
from keylime_verifier.pushing.logins import TooManySessions

Handler = Callable[[Request], Awaitable[Response]]

_JSON = "application/json"


def document(code: int, content: Document | ErrorDocument, headers: Mapping[str, str] = {}) -> Response:
    """An answer that is a document."""
    return Response(code, raw=encode_document(content), headers={"Content-Type": CONTENT_TYPE, **headers})


def bare(code: int) -> Response:
    """A refusal that is a status alone, as of what is no document."""
    return Response(code, empty=True)


def denial(code: int, detail: str, retry_after_s: float | None = None) -> Response:
    """A refusal about sessions or rights."""
    denied = refusal(code, detail)
    headers = {} if retry_after_s is None else retry_after(retry_after_s)
    return Response(code, document=denied.document, headers=headers)


def is_document(request: Request, *, kind: str) -> bool:
    """Whether the body says that it is a document; those about sessions may say that they are JSON."""
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not request.body:
        return False
    if media_type == CONTENT_TYPE:
        return True
    is_json = media_type == _JSON or (media_type.startswith("application/") and media_type.endswith("+json"))
    return is_json and kind == SESSION


def _is_json(body: bytes) -> bool:
    try:
        parse_body(body, msgspec.Raw)
    except MalformedMessage:
        return False
    return True


def own_path(request: Request, *segments: object) -> str:
    """What a document says of the place that was asked for."""
    return "/".join(("", f"v{request.version}", *map(str, segments)))


def answered(handler: Handler) -> Handler:
    """The handler, with what it raises as answers of API 3.0."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except MalformedMessage as error:
            return denial(400, str(error)) if _is_json(request.body) else bare(400)
        except Unauthenticated as error:
            return denial(401, str(error))
        except NotTheOwner as error:
            return denial(403, str(error))
        except TooManySessions as error:
            return denial(429, f"Too many sessions, try again later: {error}", error.wait_s)
        except PushRefused as error:
            headers = {} if error.retry_after_s is None else retry_after(error.retry_after_s)
            agent_id = request.parameters.get("agent_id")
            path = own_path(request, *(("agents", agent_id, "attestations") if agent_id else ()))
            problems = ((one.pointer, one.detail) for one in error.problems)
            content = error_document(error.status, error.code, str(error), path, *problems)
            return document(error.status, content, headers)

    return answer
