"""Paths, versions, rights: what is decided before a body is read."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.http.exchange import Caller, Request, Response, Role
from keylime.http.routing import Admission, Route, Router

ADMIN = Caller(Role.ADMIN, "operator", "127.0.0.1")
STRANGER = Caller(Role.ANONYMOUS, None, "127.0.0.1")


async def read_agent(_request: Request) -> Response:
    return Response()


ROUTES = (
    Route("GET", "/version", Role.ANONYMOUS, read_agent, plain_http=True, versioned=False),
    Route("GET", "/", Role.ANONYMOUS, read_agent, versioned=False),
    Route("GET", "/agents", Role.ADMIN, read_agent),
    Route("GET", "/agents/{agent_id}", Role.ADMIN, read_agent),
    Route("POST", "/agents/{agent_id}", Role.ANONYMOUS, read_agent, plain_http=True),
    Route("PUT", "/agents/{agent_id}/stop", Role.ADMIN, read_agent),
    Route("GET", "/agents/reactivate", Role.ADMIN, read_agent, action="fixed"),
    Route("GET", "/allowlists/{name}", Role.ADMIN, read_agent),
)
ROUTER = Router(ROUTES)


def admit(
    method: str, target: str, caller: Caller = ADMIN, *, secure: bool = True, authorization: str | None = None
) -> Admission | Response:
    return ROUTER.admit(method, target, authorization, secure=secure, identify=lambda: caller)


@pytest.mark.parametrize(
    ("target", "version"),
    [
        ("/v2.5/agents/a", "2.5"),
        ("/v2.0/agents/a", "2.0"),
        ("/v2.6/agents/a/", "2.6"),
        ("/v2/agents/a", "2.6"),
    ],
)
def test_every_supported_version_and_the_bare_major_lead_to_the_route(target: str, version: str) -> None:
    admitted = admit("GET", target)
    assert isinstance(admitted, Admission)
    assert (admitted.version, admitted.parameters) == (version, {"agent_id": "a"})


@pytest.mark.parametrize(
    "target",
    [
        "/v2.7/agents/a",
        "/v1.0/agents/a",
        "/v9.9/agents/a",
        "/v3.0/agents/a",
        "/v3/agents/a",
        "/V2.5/agents/a",
        "/v02/agents/a",
        "/v2./agents/a",
        "/2.5/agents/a",
        "/agents/a",
        "/v2.5/version",
        "/v2.5/Agents/a",
        "/v2.5/%61gents/a",
        "/v2.5//agents/a",
        "/v2.5/agents/a//",
        "/v2.5/agents/a/stop/now",
        "/v2.5",
        "/v2.5/",
        "//version",
        "/Version",
        "/v２.5/agents/a",  # noqa: RUF001
    ],
)
def test_other_versions_and_paths_are_not_found_and_have_no_body(target: str) -> None:
    assert admit("GET", target) == Response(404, empty=True)


def test_an_unknown_path_may_be_answered_otherwise() -> None:
    router = Router(ROUTES, unrouted=lambda method, path: Response(400, status=f"{method} {path}"))
    answer = router.admit("GET", "/v9.0/x?y=1", None, secure=True, identify=lambda: ADMIN)
    assert answer == Response(400, status="GET /v9.0/x")


def test_a_known_path_with_an_unknown_method_is_405_without_body() -> None:
    assert admit("PATCH", "/v2.5/agents/a") == Response(405, empty=True)


def test_a_fixed_word_wins_over_a_parameter() -> None:
    admitted = admit("GET", "/v2.5/agents/reactivate")
    assert isinstance(admitted, Admission)
    assert admitted.route.label == "fixed"


def test_plain_http_is_refused_where_tls_is_needed() -> None:
    assert admit("GET", "/v2.5/agents/a", secure=False) == Response(400, empty=True)
    assert isinstance(admit("POST", "/v2.5/agents/a", STRANGER, secure=False), Admission)


def test_a_stranger_is_refused_and_told_which_action_it_was() -> None:
    answer = admit("GET", "/v2.5/agents/a", STRANGER)
    assert isinstance(answer, Response)
    assert answer.code == 403
    assert json.loads(answer.encode()) == {
        "errors": [
            {
                "status": "403",
                "title": "Forbidden",
                "detail": "Action read_agent requires admin authentication (mTLS certificate)",
            }
        ]
    }


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        ("Basic YTpi", "Invalid Authorization header format"),
        ("", "Invalid Authorization header format"),
        ("Bearer", "Invalid Authorization header format"),
        ("Bearer abc", "Invalid authentication token"),
    ],
)
def test_an_authorization_header_never_falls_back_to_the_certificate(header: str, detail: str) -> None:
    answer = admit("GET", "/v2.5/agents/a", ADMIN, authorization=header)
    assert isinstance(answer, Response)
    assert answer.code == 401
    assert json.loads(answer.encode())["errors"][0]["detail"] == detail


def test_who_may_be_either_is_told_that_he_must_be_somebody() -> None:
    router = Router([Route("GET", "/agents/{agent_id}", Role.AGENT_OR_ADMIN, read_agent)])
    answer = router.admit("GET", "/v2/agents/a", None, secure=True, identify=lambda: STRANGER)
    assert isinstance(answer, Response)
    detail = json.loads(answer.encode())["errors"][0]["detail"]
    assert (answer.code, detail) == (403, "Action read_agent requires authentication")


@pytest.mark.parametrize("caller", [STRANGER, ADMIN])
def test_a_token_is_looked_at_by_whoever_can_and_gives_no_administrators_rights(caller: Caller) -> None:
    async def look_at_token(_request: Request) -> Response:
        return Response(403)

    router = Router([Route("POST", "/agents", Role.ADMIN, read_agent, for_tokens=look_at_token)])

    def admit_with(authorization: str | None) -> Admission | Response:
        return router.admit("POST", "/v2/agents", authorization, secure=True, identify=lambda: caller)

    admitted = admit_with("Bearer abc")
    assert isinstance(admitted, Admission)
    assert admitted.route.handler is look_at_token
    assert admitted.route.max_body == 32 << 10, "who will be refused needs no room"
    refused = admit_with("Basic abc")
    assert isinstance(refused, Response)
    assert refused.code == 401
    without = admit_with(None)
    assert isinstance(without, Response) == (caller is STRANGER)
    if isinstance(without, Admission):
        assert without.route.handler is read_agent


def test_a_stranger_learns_nothing_from_the_id() -> None:
    answers = {admit("GET", f"/v2.5/agents/{name}", STRANGER).encode() for name in ("known", "..", "%00")}  # type: ignore[union-attr]
    assert len(answers - {Response(400, status="the path holds a control character").encode()}) == 1


@pytest.mark.parametrize(
    "name", ["..", ".", "a%2Fb", "a%00", "%C0%AE", "a%0Ab", "x" * 10_000, "-rf", "é", "%20"]
)
def test_an_agent_id_is_checked_on_every_route_that_has_one(name: str) -> None:
    for method, target in (
        ("GET", "/v2/agents/{}"),
        ("POST", "/v2/agents/{}"),
        ("PUT", "/v2/agents/{}/stop"),
    ):
        answer = admit(method, target.format(name))
        assert isinstance(answer, Response)
        assert answer.code == 400


def test_other_names_are_decoded_once() -> None:
    admitted = admit("GET", "/v2/allowlists/a%252Fb%20c")
    assert isinstance(admitted, Admission)
    assert admitted.parameters == {"name": "a%2Fb c"}


def test_the_query_is_decoded_and_doubled_parameters_are_refused() -> None:
    admitted = admit("GET", "/v2/agents?verifier=a%20b&bulk=")
    assert isinstance(admitted, Admission)
    assert admitted.query == {"verifier": "a b", "bulk": ""}
    for query in ("a=1&a=2", "&".join(f"k{n}=1" for n in range(100)), "a=%ff"):
        answer = admit("GET", f"/v2/agents?{query}")
        assert isinstance(answer, Response)
        assert answer.code == 400


def test_two_handlers_for_one_route_are_a_defect() -> None:
    with pytest.raises(ValueError, match="two routes"):
        Router([ROUTES[2], ROUTES[2]])


@given(st.text(max_size=60) | st.text(string.printable, max_size=60).map(lambda text: f"/v2/agents/{text}"))
def test_whatever_the_target_a_stranger_never_reaches_an_administrators_route(target: str) -> None:
    answer = admit("GET", target, STRANGER)
    if isinstance(answer, Admission):
        assert answer.route.role is Role.ANONYMOUS
    else:
        assert answer.code in (400, 403, 404, 405)
