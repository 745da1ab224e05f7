"""The descriptions of the APIs: complete, closed, and about the routes that there are."""

import json
import re
from typing import Any

import msgspec
import pytest

from keylime.http.openapi import Api, describe_api
from keylime.http.server import Request, Response, Role, Route
from tests.api_documents import DOCUMENTS, TABLES

VERIFIER = DOCUMENTS["verifier"]
every_program = pytest.mark.parametrize("program", ["registrar", "verifier", "agent"])


async def _answer(_request: Request) -> Response:
    return Response()


@every_program
def test_every_route_is_described(program: str) -> None:
    routes = TABLES[program][1]
    assert [(route.method, route.path) for route in routes if route.about is None] == []


_VERSIONS = {2: "2.6", 3: "3.0"}


@every_program
def test_the_paths_are_those_of_the_routes(program: str) -> None:
    routes = TABLES[program][1]
    expected = {
        (f"/v{_VERSIONS[route.major]}{route.path}" if route.versioned else route.path, route.method.lower())
        for route in routes
    }
    paths = DOCUMENTS[program]["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == expected
    assert ("/openapi.json", "get") in expected


def test_a_route_that_nobody_described_is_there_all_the_same() -> None:
    api = Api("Some", ("2.5", "2.6"), unrouted="No body.", administrators="A certificate.")
    routes = [Route("PUT", "/new/{agent_id}", Role.ADMIN, _answer, action="make_new")]
    document: dict[str, Any] = json.loads(msgspec.json.encode(describe_api(api, routes)))
    operation = document["paths"]["/v2.6/new/{agent_id}"]["put"]
    assert operation["summary"] == "make_new"
    assert operation["security"] == [{"administrator": []}]
    assert operation["parameters"][0]["name"] == "agent_id"
    assert document["info"] == {
        "title": "Some",
        "version": "2.6",
        "description": "The paths work with any of /v2.5 to /v2.6, and with or without a slash at their end. "
        "No body.",
    }


@every_program
def test_every_reference_leads_somewhere_and_every_id_is_unique(program: str) -> None:
    described = DOCUMENTS[program]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described)))
    assert {"Refused"} < references <= set(described["components"]["schemas"])
    ids = [
        operation["operationId"] for methods in described["paths"].values() for operation in methods.values()
    ]
    assert len(ids) == len(set(ids))


def test_the_types_are_those_of_the_messages() -> None:
    operation = VERIFIER["paths"]["/v2.6/allowlists/{name}"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/RuntimePolicyRequest"}
    schemas = VERIFIER["components"]["schemas"]
    assert schemas["RuntimePolicyRequest"]["required"] == ["runtime_policy"]
    assert schemas["RuntimePolicyNames"]["required"] == ["runtimepolicy names"]
    assert {"AddAgentRequest", "AgentStatus", "TpmEvidence", "Refused", "Denied"} <= set(schemas)
    assert {"RegisterRequest", "RegisteredAgent"} <= set(DOCUMENTS["registrar"]["components"]["schemas"])
    assert {"QuoteReply", "UKeyRequest"} <= set(DOCUMENTS["agent"]["components"]["schemas"])


@pytest.mark.parametrize(
    ("program", "path", "is_open"),
    [
        ("verifier", "/v2.6/verify/evidence", True),
        ("verifier", "/v2.6/agents", False),
        ("registrar", "/v2.6/agents/{agent_id}/activate", True),
        ("registrar", "/v2.6/agents", None),  # to register is for anyone, to list is not
        ("agent", "/v2.6/quotes/identity", False),
        ("agent", "/openapi.json", False),
    ],
)
def test_rights_are_part_of_it(program: str, path: str, is_open: bool | None) -> None:
    for method, operation in DOCUMENTS[program]["paths"][path].items():
        expected = method == "post" if is_open is None else is_open
        assert (operation["security"] == []) is expected
        assert ("401" in operation["responses"]) is not expected


def test_codes_of_success_and_empty_answers() -> None:
    policy = VERIFIER["paths"]["/v2.6/mbpolicies/{name}"]
    assert "content" not in policy["delete"]["responses"]["204"]
    created = policy["put"]["responses"]["201"]["content"]["application/json"]["schema"]
    assert created["properties"]["code"] == {"const": 201}
    assert {"404", "409"} <= set(policy["put"]["responses"])


def test_parameters_of_a_query_are_told_with_what_they_must_be() -> None:
    fields = DOCUMENTS["agent"]["paths"]["/v2.6/quotes/integrity"]["get"]["parameters"]
    assert [(field["name"], field["required"]) for field in fields] == [
        ("nonce", True),
        ("mask", True),
        ("partial", True),
        ("ima_ml_entry", False),
    ]
    assert all(field["description"] for field in fields)
    assert re.match(fields[0]["schema"]["pattern"], "A1" * 32)
    assert not re.match(fields[0]["schema"]["pattern"], "A1" * 33)
