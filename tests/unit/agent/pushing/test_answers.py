import json
from datetime import UTC, datetime

import pytest

from keylime.errors import MalformedMessage
from keylime.messages.push_session import VerdictAttributes
from keylime_agent.pushing.answers import evidence_path, refusal, refusal_of_session, verdict
from keylime_agent.pushing.course import (
    Forbidden,
    LoggedIn,
    NotAdded,
    PutOff,
    TokenOver,
    VerifierRefused,
    VerifierUnreachable,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
URL = "https://verifier.example.com:8881"
ERROR = json.dumps({"errors": [{"status": "422", "detail": "bad", "source": {"pointer": "/data"}}]}).encode()


@pytest.mark.parametrize(
    ("code", "body", "retry", "outcome"),
    [
        (401, b"", None, TokenOver()),
        (401, b"", "5", TokenOver()),
        (403, b"", None, Forbidden("403")),
        (404, b"", None, Forbidden("404")),
        (409, b"", None, VerifierRefused("409")),
        (422, ERROR, None, VerifierRefused("422 bad (/data)")),
        (429, b"", "3", PutOff(3, "429")),
        (429, b"", None, VerifierRefused("429")),
        (503, b"<html>", "1", PutOff(1, "503")),
        (503, b"", None, VerifierUnreachable("503")),
        (500, b"", "3", VerifierUnreachable("500")),
        (200, b"{}", "3", VerifierRefused("200")),
        (415, b"", None, VerifierRefused("415")),
    ],
)
def test_what_an_answer_means_that_is_not_the_one_that_was_hoped_for(
    code: int, body: bytes, retry: str | None, outcome: object
) -> None:
    assert refusal(code, body, retry, NOW) == outcome


def test_without_a_token_nothing_is_over_or_forbidden() -> None:
    assert refusal_of_session(401, b"", None, NOW) == VerifierRefused("401")
    assert refusal_of_session(429, b"", "60", NOW) == PutOff(60, "429")
    missing = refusal_of_session(404, b"", None, NOW)
    assert isinstance(missing, VerifierRefused)
    assert "[verifier] mode" in missing.reason


def attributes(evaluation: str, token: str | None = None) -> VerdictAttributes:
    fields = {
        "agent_id": "a",
        "evaluation": evaluation,
        "authentication": [],
        "created_at": "",
        "challenges_expire_at": "",
        "response_received_at": "",
    }
    return VerdictAttributes(**fields, **({} if token is None else {"token": token}))  # type: ignore[arg-type]


def test_a_proof_is_taken_refused_or_of_nobody() -> None:
    assert verdict(attributes("pass", "t"), 200, "a") == LoggedIn("t")
    unknown, wrong = verdict(attributes("fail"), 200, "a"), verdict(attributes("fail"), 401, "a")
    assert isinstance(unknown, NotAdded)
    assert "-c add --push-model -u a" in unknown.reason
    assert isinstance(wrong, VerifierRefused)
    assert "-c update --push-model -u a" in wrong.reason


@pytest.mark.parametrize("location", ["/v3.0/agents/a/attestations/7", f"{URL}/v3.0/agents/a/attestations/7"])
def test_evidence_goes_to_the_place_that_was_named(location: str) -> None:
    assert evidence_path(location, URL) == "/v3.0/agents/a/attestations/7"


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "https://evil.example.com/",
        "//evil.example.com/x",
        "http://verifier.example.com:8881/x",
        "/a b",
    ],
)
def test_a_token_goes_nowhere_else(location: str | None) -> None:
    with pytest.raises(MalformedMessage):
        evidence_path(location, URL)
