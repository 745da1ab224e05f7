"""The description of the API: complete, closed, and about the routes that there are."""

import json
import re
from typing import Any

import msgspec
import pytest

from keylime.health import Health
from keylime.http.probes import probe_routes
from keylime.http.server import Request, Response, Role, Route
from keylime_verifier.handlers import AgentHandlers, version_routes
from keylime_verifier.openapi import OPERATIONS, describe_api, openapi_route
from keylime_verifier.policy_handlers import PolicyHandlers
from keylime_verifier.revocation_handlers import RevocationHandlers
from keylime_verifier.verification_handlers import VerificationHandlers


async def _answer(_request: Request) -> Response:
    return Response()


def all_routes() -> list[Route]:
    """The tables alone; nothing behind them is asked."""
    routes = [
        *version_routes(),
        *probe_routes(Health()),
        *AgentHandlers.__new__(AgentHandlers).routes(),
        *PolicyHandlers.__new__(PolicyHandlers).routes(),
        *VerificationHandlers.__new__(VerificationHandlers).routes(),
        *RevocationHandlers.__new__(RevocationHandlers).routes(),
        *probe_routes(Health()),
    ]
    return [*routes, openapi_route(routes)]


def document(routes: list[Route] | None = None) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(msgspec.json.encode(describe_api(routes or all_routes())))
    return described


def test_every_route_is_described_and_nothing_else() -> None:
    assert {(route.method, route.path) for route in all_routes()} == set(OPERATIONS)


def test_the_paths_are_those_of_the_routes() -> None:
    paths = document()["paths"]
    expected = {
        (f"/v2.6{route.path}" if route.versioned else route.path, route.method.lower())
        for route in all_routes()
    }
    assert {(path, method) for path, methods in paths.items() for method in methods} == expected


def test_a_route_that_nobody_described_is_there_all_the_same() -> None:
    routes = [Route("PUT", "/new/{agent_id}", Role.ADMIN, _answer, action="make_new")]
    operation = document(routes)["paths"]["/v2.6/new/{agent_id}"]["put"]
    assert operation["summary"] == "make_new"
    assert operation["security"] == [{"administrator": []}]
    assert operation["parameters"][0]["name"] == "agent_id"


def test_every_reference_leads_somewhere_and_every_id_is_unique() -> None:
    described = document()
    schemas = described["components"]["schemas"]
    references = re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described))
    assert set(references) <= set(schemas)
    assert {"AddAgentRequest", "AgentStatus", "TpmEvidence", "Refused", "Denied"} <= set(references)
    ids = [
        operation["operationId"] for methods in described["paths"].values() for operation in methods.values()
    ]
    assert len(ids) == len(set(ids))


def test_the_types_are_those_of_the_messages() -> None:
    described = document()
    operation = described["paths"]["/v2.6/allowlists/{name}"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/RuntimePolicyRequest"}
    assert described["components"]["schemas"]["RuntimePolicyRequest"]["required"] == ["runtime_policy"]
    assert described["components"]["schemas"]["RuntimePolicyNames"]["required"] == ["runtimepolicy names"]


@pytest.mark.parametrize(("path", "is_open"), [("/v2.6/verify/evidence", True), ("/v2.6/agents", False)])
def test_rights_are_part_of_it(path: str, is_open: bool) -> None:
    for operation in document()["paths"][path].values():
        assert (operation["security"] == []) is is_open
        assert ("403" in operation["responses"]) is not is_open


def test_codes_of_success_and_empty_answers() -> None:
    policy = document()["paths"]["/v2.6/mbpolicies/{name}"]
    assert "content" not in policy["delete"]["responses"]["204"]
    created = policy["put"]["responses"]["201"]["content"]["application/json"]["schema"]
    assert created["properties"]["code"] == {"const": 201}
    assert {"404", "409"} <= set(policy["put"]["responses"])
