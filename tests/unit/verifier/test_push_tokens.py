"""Tokens as they are shown: what can be none is refused before anything is read for it."""

import asyncio
import secrets
from typing import cast

import pytest

from keylime.identifiers import AgentId
from keylime_verifier.agents.pushing import AttestationLimits
from keylime_verifier.pushing.attestation_store import AttestationStore
from keylime_verifier.pushing.attestations import Attestations, Unauthenticated
from keylime_verifier.pushing.judging import Judging
from keylime_verifier.pushing.kept_references import KeptReferences
from keylime_verifier.pushing.known_agents import CallingAgent
from keylime_verifier.pushing.sessions import SECRET_SIZE, make_token, read_token

SESSION = "01234567-89ab-4cde-8f01-23456789abcd"
SECRET = "-" + "_" * 42
IMPOSSIBLE = [
    "",
    ".",
    SESSION,
    f"{SESSION}.",
    f".{SECRET}",
    f"{SESSION}.{SECRET[1:]}",
    f"{SESSION}.{SECRET}A",
    f"{SESSION}.{SECRET[1:]}.",
    f"{SESSION}.{SECRET[1:]}+",
    f"{SESSION}.{SECRET[1:]}\n",
    f"{SESSION}.{SECRET[1:]}é",
    f"{SESSION.upper()}.{SECRET}",
    f"{SESSION[:-1]}g.{SECRET}",
    f"{SESSION[:-1]}.{SECRET}",
    f"{{{SESSION[1:-1]}}}.{SECRET}",
    f"{SESSION}.{SECRET}.{SECRET}",
    "A" * 100_000,
]


class CountingStore(AttestationStore):
    """A database without sessions; how often it was asked."""

    def __init__(self) -> None:
        self.reads = 0

    async def agent_of(self, session_id: str) -> AgentId:
        self.reads += 1
        return AgentId("")

    async def look(self, agent_id: AgentId, session_id: str) -> CallingAgent:
        self.reads += 1
        return CallingAgent(None, None, None, None)


def reads_for(token: str) -> list[int]:
    """How often the database is asked for it, by both ways to ask. It is refused."""
    store = CountingStore()
    attestations = Attestations(
        store,
        cast(KeptReferences, None),
        cast(Judging, None),
        AttestationLimits(interval_s=60, challenge_s=60, verdict_s=60),
        now=lambda: 0.0,
    )
    reads = []
    for ask in (attestations.whose(token), attestations.authenticate(AgentId("agent"), token)):
        store.reads = 0
        with pytest.raises(Unauthenticated, match=r"^Invalid authentication token$"):
            asyncio.run(ask)
        reads.append(store.reads)
    return reads


@pytest.mark.parametrize("token", IMPOSSIBLE)
def test_n14_what_can_be_no_token_is_refused_before_anything_is_read(token: str) -> None:
    assert reads_for(token) == [0, 0]


def test_one_that_could_be_a_token_is_looked_for() -> None:
    assert reads_for(f"{SESSION}.{SECRET}") == [2, 1]


def test_every_token_that_is_given_can_be_one() -> None:
    for _ in range(100):
        token, _stored = make_token(SESSION, secrets.token_urlsafe(SECRET_SIZE), bytes(16))
        assert read_token(token.text) == token
