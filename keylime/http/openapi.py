"""A program's API described in OpenAPI 3.1, made from its table of routes and its message types."""

import functools
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from keylime.http.exchange import Request, Response, Role
from keylime.http.operation import Operation, QueryField
from keylime.http.routing import Route

_REF = "#/components/schemas/{name}"
_JSON = "application/json"
_DOCUMENT = "application/vnd.api+json"
STREAM_TYPE = "text/event-stream"
_PARAMETER = re.compile(r"\{(\w+)\}")
_NOT_WORD = re.compile(r"\W+")
_PATTERNS = {
    "agent_id": r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}$",
    "name": r"^[^\u0000-\u001f\u007f/]{1,255}$",
    "version": r"^[0-9]{1,9}$",
}


@dataclass(frozen=True, slots=True)
class Api:
    """What is said of an API as a whole."""

    title: str
    versions: Sequence[str]  # that it serves, ascending
    unrouted: str  # how unknown paths and methods are answered
    administrators: str  # who has the rights of one


def openapi_route(
    api: Api, routes: Sequence[Route], *, role: Role = Role.ANONYMOUS, plain_http: bool = False
) -> Route:
    """`GET /openapi.json`: the description of `routes` and of itself."""

    @functools.cache
    def answer() -> Response:
        # Encoded once, as it does not change, and not before somebody asks: few services are ever asked.
        return Response(document=msgspec.Raw(msgspec.json.encode(describe_api(api, [*routes, route]))))

    async def show_openapi(_request: Request) -> Response:
        return answer()

    route = Route(
        "GET",
        "/openapi.json",
        role,
        show_openapi,
        plain_http=plain_http,
        versioned=False,
        about=Operation("This description."),
    )
    return route


def describe_api(api: Api, routes: Iterable[Route]) -> dict[str, Any]:
    """The OpenAPI document of `routes`, at the newest version; what says nothing of itself is there too."""
    described = [(route, route.about or Operation(route.label)) for route in routes]
    types = [
        kind
        for _, operation in described
        for kind in (operation.results, operation.alternative, operation.body)
        if kind is not None
    ]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(types, schemas, strict=True))
    newest = api.versions[-1]
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in described:
        version = newest if route.major == 2 else f"{route.major}.0"
        path = f"/v{version}{route.path}" if route.versioned else route.path
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": api.title,
            "version": newest,
            "description": f"The paths work with any of /v{api.versions[0]} to /v{newest}, "
            f"and with or without a slash at their end. {api.unrouted}",
        },
        "paths": paths,
        "components": {
            "schemas": {
                name: _without_breaks(schema) for name, schema in (components | _COMMON_SCHEMAS).items()
            },
            "securitySchemes": {
                "administrator": {"type": "mutualTLS", "description": api.administrators},
                "agent": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token that an agent gets for the proof that it holds its AK.",
                },
            },
        },
    }


_COMMON_SCHEMAS: dict[str, Any] = {
    "Refused": {
        "title": "Refused",
        "description": "Why a call was refused: `status` names the field, when it is one that is wrong.",
        "type": "object",
        "properties": {
            "code": {"type": "integer"},
            "status": {"type": "string"},
            "results": {"type": ["object", "null"]},
        },
        "required": ["code", "status", "results"],
    },
    "Denied": {
        "title": "Denied",
        "description": "The caller may not call this.",
        "type": "object",
        "properties": {"errors": {"type": "array", "items": {"type": "object"}}},
        "required": ["errors"],
    },
}


def _operation(route: Route, operation: Operation, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{_NOT_WORD.sub('_', _named(route))}",
        "summary": operation.summary,
        "security": _SECURITY[route.role],
        "parameters": [
            *_path_parameters(route),
            *_further_parameters("query", operation.query),
            *_further_parameters("header", operation.headers),
        ],
        "responses": _responses(route, operation, schema_of),
    }
    if operation.body is not None:
        content_type = _DOCUMENT if operation.is_document else _JSON
        content = {content_type: {"schema": schema_of[operation.body]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


_SECURITY: Mapping[Role, list[dict[str, list[str]]]] = {
    Role.ANONYMOUS: [],
    Role.ADMIN: [{"administrator": []}],
    Role.AGENT: [{"agent": []}],
    Role.AGENT_OR_ADMIN: [{"administrator": []}, {"agent": []}],
}


def _named(route: Route) -> str:
    return route.path if route.major == 2 else f"/v{route.major}{route.path}"


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _text_schema(_PATTERNS.get(name))}
        for name in _PARAMETER.findall(route.path)
    ]


def _further_parameters(place: str, fields: Mapping[str, QueryField]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": place,
            "required": field.required,
            "description": field.about,
            "schema": _text_schema(field.pattern),
        }
        for name, field in fields.items()
    ]


def _text_schema(pattern: str | None) -> dict[str, str]:
    return {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}


# No content is described where there may be none.
_BARE = {
    400: "Refused: an error as of other refusals, or no body if the request's is not JSON.",
    415: "Refused, without a body: the request has none, or one of another type.",
}


def _responses(route: Route, operation: Operation, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done."}
    if route.path == "/openapi.json":
        answer["content"] = {_JSON: {"schema": {"type": "object"}}}
    elif operation.is_stream:
        answer["description"] = "Server-sent events without end, the data of each of which is this."
        answer["content"] = {STREAM_TYPE: {"schema": schema_of[operation.results]}}
    elif operation.is_document:
        answer["content"] = {_DOCUMENT: {"schema": schema_of[operation.results]}}
    elif operation.success not in (204, 307):
        answer["content"] = {_JSON: {"schema": _envelope(operation, schema_of)}}
    refusals = {400, *operation.refusals, 503}
    if operation.body is not None:
        refusals |= {413, 429}
    refused = _document_refusal() if operation.is_document else _refusal("Refused")
    responses = {str(operation.success): answer} | {str(code): refused for code in refusals}
    if operation.is_document:
        responses |= {str(code): {"description": text} for code, text in _BARE.items() if code in refusals}
    if route.role in (Role.ADMIN, Role.AGENT_OR_ADMIN):
        responses |= {"401": _refusal("Denied", "Refused"), "403": _refusal("Denied")}
    return dict(sorted(responses.items()))


def _envelope(operation: Operation, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    results = schema_of[operation.results]
    if operation.alternative is not None:
        results = {"anyOf": [results, schema_of[operation.alternative]]}
    return {
        "type": "object",
        "properties": {
            "code": {"const": operation.success},
            "status": {"type": "string"},
            "results": results,
        },
        "required": ["code", "status", "results"],
    }


def _refusal(*names: str) -> dict[str, Any]:
    references = [{"$ref": _REF.format(name=name)} for name in names]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"description": "Refused.", "content": {_JSON: {"schema": schema}}}


def _document_refusal() -> dict[str, Any]:
    """Of API 3.0; one that comes before its handler has an envelope."""
    errors = {"schema": {"$ref": _REF.format(name="Denied")}}
    either = {"anyOf": [{"$ref": _REF.format(name=name)} for name in ("Denied", "Refused")]}
    return {"description": "Refused.", "content": {_JSON: {"schema": either}, _DOCUMENT: errors}}


def _without_breaks(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with a docstring's indentation taken out of its description."""
    if "description" not in schema:
        return schema
    return {**schema, "description": inspect.cleandoc(schema["description"])}
