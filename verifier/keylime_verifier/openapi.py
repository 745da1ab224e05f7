"""The verifier's API described in OpenAPI 3.1, made from its table of routes and its message types."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from keylime.http.probes import HealthReply
from keylime.http.server import Request, Response, Role, Route
from keylime.messages.deliveries import Deliveries
from keylime.messages.verification import (
    EvidenceReply,
    EvidenceRequest,
    IdentityReply,
    MeasuredBootPolicyNames,
    NamedMeasuredBootPolicy,
    NamedRuntimePolicy,
    RuntimePolicyNames,
)
from keylime.messages.verifier import (
    AddAgentRequest,
    AgentStatus,
    MeasuredBootPolicyRequest,
    RuntimePolicyRequest,
    VerifierAgents,
)
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS, ServerVersions

_REF = "#/components/schemas/{name}"
_JSON = "application/json"
_PARAMETER = re.compile(r"\{(\w+)\}")
_NOT_WORD = re.compile(r"\W+")
_PATTERNS = {
    "agent_id": r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}$",
    "name": r"^[^\u0000-\u001f\u007f/]{1,255}$",
}


class Nothing(msgspec.Struct, frozen=True):
    """Results of calls that have none."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What the route table does not say about a call: words, types, codes. `query` maps names to need.

    `alternative` is the type of results that some queries get instead of `results`.
    """

    summary: str
    results: Any = Nothing
    alternative: Any = None
    body: Any = None
    query: Mapping[str, bool] | None = None
    success: int = 200
    refusals: Sequence[int] = ()


_POLICY_REFUSALS = (401, 404, 409)

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("GET", "/version"): Operation("The API versions of this verifier.", ServerVersions),
    ("GET", "/versions"): Operation("The same as /version.", ServerVersions),
    ("GET", "/openapi.json"): Operation("This description."),
    ("GET", "/healthz"): Operation("Whether the process is alive; if not, start it again.", HealthReply),
    ("GET", "/readyz"): Operation("Whether all that it needs is there.", HealthReply),
    ("GET", "/agents"): Operation(
        "The ids of all agents, or with `bulk` their status by id.",
        VerifierAgents,
        alternative=dict[str, AgentStatus],
        query={"verifier": False, "bulk": False},
    ),
    ("GET", "/agents/{agent_id}"): Operation("The status of one agent.", AgentStatus, refusals=(404,)),
    ("POST", "/agents/{agent_id}"): Operation(
        "Adds an agent and starts to attest it.", body=AddAgentRequest, refusals=_POLICY_REFUSALS
    ),
    ("DELETE", "/agents/{agent_id}"): Operation(
        "Removes an agent and the policies that came with it.", refusals=(404,)
    ),
    ("PUT", "/agents/{agent_id}/reactivate"): Operation(
        "Attests an agent again, from the start.", refusals=(404,)
    ),
    ("PUT", "/agents/{agent_id}/stop"): Operation("Ends the attestation of an agent.", refusals=(404,)),
    ("GET", "/allowlists"): Operation("The names of all runtime policies.", RuntimePolicyNames),
    ("GET", "/allowlists/{name}"): Operation("One runtime policy.", NamedRuntimePolicy, refusals=(404,)),
    ("POST", "/allowlists/{name}"): Operation(
        "Keeps a new runtime policy.", body=RuntimePolicyRequest, success=201, refusals=_POLICY_REFUSALS
    ),
    ("PUT", "/allowlists/{name}"): Operation(
        "Replaces a runtime policy, also for the agents that use it.",
        body=RuntimePolicyRequest,
        success=201,
        refusals=_POLICY_REFUSALS,
    ),
    ("DELETE", "/allowlists/{name}"): Operation(
        "Removes a runtime policy that no agent uses.", success=204, refusals=(404, 409)
    ),
    ("GET", "/mbpolicies"): Operation("The names of all reference states.", MeasuredBootPolicyNames),
    ("GET", "/mbpolicies/{name}"): Operation(
        "One reference state.", NamedMeasuredBootPolicy, refusals=(404,)
    ),
    ("POST", "/mbpolicies/{name}"): Operation(
        "Keeps a new reference state.", body=MeasuredBootPolicyRequest, success=201, refusals=(404, 409)
    ),
    ("PUT", "/mbpolicies/{name}"): Operation(
        "Replaces a reference state, also for the agents that use it.",
        body=MeasuredBootPolicyRequest,
        success=201,
        refusals=(404, 409),
    ),
    ("DELETE", "/mbpolicies/{name}"): Operation(
        "Removes a reference state that no agent uses.", success=204, refusals=(404, 409)
    ),
    ("GET", "/revocations"): Operation(
        "Revocations and how their delivery stands.",
        Deliveries,
        query={"agent": False, "state": False, "limit": False},
    ),
    ("GET", "/verify/identity"): Operation(
        "Whether a quote is one of an agent for a nonce.",
        IdentityReply,
        query={"agent_uuid": True, "quote": True, "nonce": True, "hash_alg": True},
        refusals=(404,),
    ),
    ("POST", "/verify/evidence"): Operation(
        "Judges evidence at hand.", EvidenceReply, body=EvidenceRequest, refusals=(413,)
    ),
}


def openapi_route(routes: Iterable[Route]) -> Route:
    """`GET /openapi.json`, for anyone: the description of `routes` and of itself."""

    async def show_openapi(_request: Request) -> Response:
        return answer

    route = Route("GET", "/openapi.json", Role.ANONYMOUS, show_openapi, versioned=False)
    # Encoded once: it does not change.
    encoded = msgspec.Raw(msgspec.json.encode(describe_api([*routes, route])))
    answer = Response(document=encoded)
    return route


def describe_api(routes: Iterable[Route]) -> dict[str, Any]:
    """The OpenAPI document of `routes`, at the newest version. Without an Operation a route is there too."""
    routes = list(routes)
    described = {
        route: OPERATIONS.get((route.method, route.path), Operation(route.label)) for route in routes
    }
    types = [
        kind
        for operation in described.values()
        for kind in (operation.results, operation.alternative, operation.body)
        if kind is not None
    ]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in described.items():
        path = f"/v{CURRENT_VERSION}{route.path}" if route.versioned else route.path
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keylime verifier",
            "version": CURRENT_VERSION,
            "description": f"The paths work with any of /v{SUPPORTED_VERSIONS[0]} to /v{CURRENT_VERSION}, "
            "and with or without a slash at their end. Answers to unknown paths and methods have no body.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                name: _without_breaks(schema) for name, schema in (components | _COMMON_SCHEMAS).items()
            },
            "securitySchemes": {
                "administrator": {
                    "type": "mutualTLS",
                    "description": "A client certificate of the authority in `trusted_client_ca`.",
                }
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
        "operationId": f"{route.method.lower()}{_NOT_WORD.sub('_', route.path)}",
        "summary": operation.summary,
        "security": [{"administrator": []}] if route.role is Role.ADMIN else [],
        "parameters": [*_path_parameters(route), *_query_parameters(operation)],
        "responses": _responses(route, operation, schema_of),
    }
    if operation.body is not None:
        content = {_JSON: {"schema": schema_of[operation.body]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _text_schema(_PATTERNS.get(name))}
        for name in _PARAMETER.findall(route.path)
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": required, "schema": _text_schema(None)}
        for name, required in (operation.query or {}).items()
    ]


def _text_schema(pattern: str | None) -> dict[str, str]:
    return {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}


def _responses(route: Route, operation: Operation, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done."}
    if route.path == "/openapi.json":
        answer["content"] = {_JSON: {"schema": {"type": "object"}}}
    elif operation.success != 204:
        answer["content"] = {_JSON: {"schema": _envelope(operation, schema_of)}}
    refusals = {400, *operation.refusals, 503}
    if operation.body is not None:
        refusals.add(413)
    responses = {str(operation.success): answer} | {str(code): _refusal("Refused") for code in refusals}
    if route.role is Role.ADMIN:
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


def _without_breaks(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with a docstring's indentation taken out of its description."""
    if "description" not in schema:
        return schema
    return {**schema, "description": inspect.cleandoc(schema["description"])}
