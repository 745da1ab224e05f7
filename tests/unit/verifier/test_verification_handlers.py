"""What `/verify` answers when nobody can judge now."""

import asyncio

import pytest

from keylime.http.exchange import Caller, HttpError, Request, Response, Role
from keylime_verifier.api.verification_handlers import VerificationHandlers
from keylime_verifier.verification.refusals import NotJudged

CALLER = Caller(Role.ANONYMOUS, None, "192.0.2.1")
REQUEST = Request("POST", "2.5", {}, {}, {}, b"{}", CALLER)


class Overworked:
    """Judges nothing."""

    def admit(self, caller: Caller) -> None:
        raise NotJudged("too much")

    async def answer(self, caller: Caller, body: bytes, *, is_typed: bool) -> Response:
        raise NotJudged("too much")


async def find_attestation_key(_agent: object) -> str | None:
    return None


def handlers() -> VerificationHandlers:
    return VerificationHandlers(find_attestation_key, Overworked(), 100)


def check(error: HttpError) -> None:
    response = error.response()
    assert (response.code, response.headers["Retry-After"], response.status) == (503, "5", "too much")


def test_n7_evidence_that_nobody_can_judge_now_is_told_when_to_come_back() -> None:
    with pytest.raises(HttpError) as refused:
        asyncio.run(handlers().verify_evidence(REQUEST))
    check(refused.value)


def test_n7_evidence_is_refused_before_its_body_is_read() -> None:
    (route,) = (one for one in handlers().routes() if one.path == "/verify/evidence")
    assert route.admit is not None
    with pytest.raises(HttpError) as refused:
        route.admit(CALLER)
    check(refused.value)
