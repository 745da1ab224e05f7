"""The table of routes, which is also the table of rights: who may call what, with everything else denied."""

import re
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from keylime.errors import MalformedMessage
from keylime.http.exchange import Caller, Request, Response, Role, refusal
from keylime.http.operation import Operation
from keylime.identifiers import parse_agent_id
from keylime.messages.versions import SUPPORTED_VERSIONS, version_key

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
Admit: TypeAlias = Callable[[Caller], None]
Unrouted: TypeAlias = Callable[[str, str], Response]

_VERSION_SEGMENT = re.compile(r"v(\d{1,3})(\.\d{1,3})?")
_PARAMETER = re.compile(r"\{(\w+)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_QUERY_FIELDS = 64
_MAX_REFUSED_BODY = 32 << 10  # bytes, of those who will be refused


@dataclass(frozen=True, slots=True)
class Route:
    """One method and path, who may call it, and what answers.

    `path` is like "/agents/{agent_id}/stop" and stands behind the version prefix unless `versioned` is false,
    that of the `major` version; a trailing slash is always optional. `action` names the call in refusals, by
    default the handler's name.
    """

    method: str
    path: str
    role: Role
    handler: Handler
    plain_http: bool = False
    versioned: bool = True
    major: int = 2
    max_body: int | None = None  # bytes, where it is less than the server's limit
    action: str | None = None
    admit: Admit | None = None  # raises HttpError for a caller whose body need not even be read
    for_tokens: Handler | None = None  # answers whoever shows a token on an administrators' route
    is_routine: bool = False  # what succeeds is told at DEBUG, as of reads: it comes all the time
    about: Operation | None = field(default=None, compare=False)  # for the description of the API

    @property
    def label(self) -> str:
        """The name of the call in refusals."""
        return self.action or str(getattr(self.handler, "__name__", f"{self.method} {self.path}"))


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that may proceed: its route, and everything but its body."""

    route: Route
    method: str
    version: str | None
    parameters: Mapping[str, str]
    query: Mapping[str, str]
    caller: Caller

    def request(self, headers: Mapping[str, str], body: bytes) -> Request:
        """The request for the route's handler."""
        return Request(self.method, self.version, self.parameters, self.query, headers, body, self.caller)


@dataclass(frozen=True, slots=True)
class _Match:
    routes: Mapping[str, Route]  # by method
    version: str | None
    parameters: Mapping[str, str]


def not_found(_method: str, _path: str) -> Response:
    """404 without a body: how registrar and verifier answer unknown paths and versions."""
    return Response(404, empty=True)


def method_not_allowed(_method: str, _path: str) -> Response:
    """405 without a body: how registrar and verifier answer a known path's unknown method."""
    return Response(405, empty=True)


class Router:
    """Decides about a request from its first line and headers alone, before any of its body is read."""

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        versions: Sequence[str] = SUPPORTED_VERSIONS,
        unrouted: Unrouted = not_found,
        wrong_method: Unrouted = method_not_allowed,
    ) -> None:
        self.routes = tuple(routes)
        self._versions = frozenset(versions)
        # /v2/ means any 2.x: the newest one.
        self._newest = {text.partition(".")[0]: text for text in sorted(versions, key=_sort_key)}
        self._unrouted = unrouted
        self._wrong_method = wrong_method
        self._table = _tabulate(self.routes)

    def admit(
        self,
        method: str,
        target: str,
        authorization: str | None,
        *,
        secure: bool,
        identify: Callable[[], Caller],
    ) -> Admission | Response:
        """An admission, or the refusal to send. `identify` is asked only when a route matched."""
        path, _, query_text = target.partition("?")
        if not path.startswith("/") or "#" in target:
            return Response(400, empty=True)
        try:
            match = self._match(path)
        except MalformedMessage as error:
            return Response(400, status=str(error))
        if match is None:
            return self._unrouted(method, path)
        route = match.routes.get(method)
        if route is None:
            return self._wrong_method(method, path)
        if not (secure or route.plain_http):
            return Response(400, empty=True)
        caller = identify()
        route = _shown_token(route, authorization)
        denied = authorise(route, caller, authorization)
        if denied is not None:
            return denied
        try:
            if "agent_id" in match.parameters:
                parse_agent_id(match.parameters["agent_id"])
            query = _parse_query(query_text)
        except MalformedMessage as error:
            return Response(400, status=str(error))
        return Admission(route, method, match.version, match.parameters, query, caller)

    def _match(self, path: str) -> _Match | None:
        segments = path[1:].split("/")
        if len(segments) > 1 and segments[-1] == "":
            segments.pop()
        found = self._lookup(segments, major=None, version=None)
        if found is not None or not segments:
            return found
        version = self._version_of(segments[0])
        key = version_key(version) if version else None
        return None if key is None else self._lookup(segments[1:], major=key[0], version=version)

    def _version_of(self, segment: str) -> str | None:
        match = _VERSION_SEGMENT.fullmatch(segment)
        if match is None:
            return None
        if match[2] is None:
            return self._newest.get(match[1])
        return segment[1:] if segment[1:] in self._versions else None

    def _lookup(self, segments: Sequence[str], *, major: int | None, version: str | None) -> _Match | None:
        for pattern, routes in self._table.get((major, len(segments)), ()):
            pairs = tuple(zip(pattern, segments, strict=True))
            if all(isinstance(part, _Name) or part == segment for part, segment in pairs):
                values = {part.name: _decode(text) for part, text in pairs if isinstance(part, _Name)}
                return _Match(routes, version, values)
        return None


def authorise(route: Route, caller: Caller, authorization: str | None) -> Response | None:
    """None when `caller` may call `route`, else the refusal.

    A caller that sends an Authorization header is judged by it alone, never by the certificate. No token
    gives the rights of an administrator; where agents may call, the handler looks whose a token is.
    """
    if route.role is Role.ANONYMOUS:
        return None
    if authorization is not None:
        if bearer_token(authorization) is None:
            return refusal(401, "Invalid Authorization header format")
        return refusal(401, "Invalid authentication token") if route.role is Role.ADMIN else None
    if route.role is Role.AGENT:
        return refusal(403, f"Action {route.label} requires agent authentication (PoP token)")
    if caller.role is Role.ADMIN:
        return None
    if route.role is Role.AGENT_OR_ADMIN:
        return refusal(403, f"Action {route.label} requires authentication")
    return refusal(403, not_for_agents(route))


def not_for_agents(route: Route) -> str:
    """What is told to whoever is no administrator, where they alone may call."""
    return f"Action {route.label} requires admin authentication (mTLS certificate)"


def _shown_token(route: Route, authorization: str | None) -> Route:
    """The route as it is for a caller with this header: who shows a token is answered by `for_tokens`."""
    if route.for_tokens is None or authorization is None or bearer_token(authorization) is None:
        return route
    return replace(route, role=Role.AGENT, handler=route.for_tokens, max_body=_MAX_REFUSED_BODY)


def bearer_token(authorization: str) -> str | None:
    """The token in an Authorization header; None when there is none in it."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() or None if scheme == "Bearer" else None


@dataclass(frozen=True, slots=True)
class _Name:
    name: str


_Pattern: TypeAlias = tuple["str | _Name", ...]
_Table: TypeAlias = Mapping[tuple[int | None, int], Sequence[tuple[_Pattern, Mapping[str, Route]]]]


def _tabulate(routes: Iterable[Route]) -> _Table:
    by_pattern: dict[tuple[int | None, _Pattern], dict[str, Route]] = {}
    for route in routes:
        major = route.major if route.versioned else None
        methods = by_pattern.setdefault((major, _pattern(route)), {})
        if route.method in methods:
            raise ValueError(f"two routes for {route.method} {route.path}")
        methods[route.method] = route
    table: dict[tuple[int | None, int], list[tuple[_Pattern, Mapping[str, Route]]]] = {}
    for (major, pattern), methods in by_pattern.items():
        table.setdefault((major, len(pattern)), []).append((pattern, methods))
    for patterns in table.values():  # a fixed word wins over a parameter
        patterns.sort(key=lambda entry: [isinstance(part, _Name) for part in entry[0]])
    return table


def _pattern(route: Route) -> _Pattern:
    if route.versioned and route.path == "/":  # what is left of "/v3.0/"
        return ()
    segments = route.path.strip("/").split("/")
    return tuple(_Name(match[1]) if (match := _PARAMETER.fullmatch(part)) else part for part in segments)


def _sort_key(version: str) -> tuple[int, int]:
    return version_key(version) or (0, 0)


def _decode(segment: str) -> str:
    try:
        text = urllib.parse.unquote(segment, errors="strict")
    except UnicodeDecodeError as error:
        raise MalformedMessage("the path is not percent-encoded UTF-8") from error
    if _CONTROL.search(text):
        raise MalformedMessage("the path holds a control character")
    return text


def _parse_query(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        pairs = urllib.parse.parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise MalformedMessage("the query string cannot be read") from error
    query = dict(pairs)
    if len(query) != len(pairs):
        raise MalformedMessage("the query string names a parameter twice")
    return query
