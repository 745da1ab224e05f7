import pytest
from cryptography import x509

from keylime.messages.versions import AGENT_VERSIONS
from keylime_agent.handlers import any_client, unrouted


@pytest.mark.parametrize(
    ("method", "path", "code", "status"),
    [
        ("GET", "/v2.9/quotes/identity", 400, "API version not supported: v2.9"),
        ("PUT", "/v1.0/", 400, "API version not supported: v1.0"),
        ("GET", "/v2.0/version", 400, "API version not supported: v2.0"),
        ("GET", "/v2.5/nothing", 400, "Not Implemented: Use /agent, /keys, or /quotes interfaces"),
        ("POST", "/v2.5/quotes/identity", 400, "Not Implemented: Use /keys or /notifications interfaces"),
        (
            "GET",
            "/v2.5/keys/other",
            400,
            "URI not supported, only /pubkey and /verify are supported for GET in /keys interface",
        ),
        (
            "POST",
            "/v2.1/keys/pubkey",
            400,
            "URI not supported, only /ukey and /vkey are supported for POST in /keys interface",
        ),
        (
            "GET",
            "/v2.5/quotes/",
            400,
            "URI not supported, only /identity and /integrity are supported for GET in /quotes/ interface",
        ),
        ("DELETE", "/v2.5/keys/ukey", 405, "Method is not supported"),
        ("DELETE", "/", 405, "Method is not supported"),
        (
            "POST",
            "/version",
            400,
            f"Not Implemented: Use /{', /'.join(AGENT_VERSIONS)} or /version interfaces",
        ),
    ],
)
def test_requests_without_a_route_are_answered_in_words_that_clients_know(
    method: str, path: str, code: int, status: str
) -> None:
    response = unrouted(method, path)
    assert (response.code, response.status, response.results) == (code, status, {})
    assert (code == 405) is (response.headers.get("Allow") == "GET, POST")


def test_who_has_no_certificate_is_nobody() -> None:
    certificate: x509.Certificate | None = None
    assert any_client(certificate) is None
