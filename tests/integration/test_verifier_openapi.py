"""The verifier against its own description: generated calls, good and bad, are answered as it says."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.api_documents import DOCUMENTS
from tests.fakes.running_verifier import running_verifier, verifier_authority
from tests.fakes.tls_material import client_context

pytest.importorskip("schemathesis")
BUDGET_S = 25.0
EXAMPLES = 8


def test_the_description_is_for_anyone_and_about_itself_too(tmp_path: Path) -> None:
    async def play() -> None:
        async with running_verifier(tmp_path) as verifier:
            nobody = client_context(verifier_authority())
            answer = await verifier.call("GET", "/openapi.json", nobody)
            assert answer.code == 200
            assert answer.body["openapi"].startswith("3.1")
            assert "/openapi.json" in answer.body["paths"]

    asyncio.run(play())


def test_calls_made_from_the_description_are_answered_as_it_says(tmp_path: Path) -> None:
    from tests.described_calls import Described

    async def play() -> None:
        async with running_verifier(tmp_path / "work") as verifier:
            document = (await verifier.admin("GET", "/openapi.json")).body
            assert document == DOCUMENTS["verifier"], "the manual's"
            url = f"https://127.0.0.1:{verifier.port}"
            api = Described.to_administrators(document, url, verifier_authority(), tmp_path)
            begun = time.monotonic()
            called = await asyncio.to_thread(api.call_everything, examples=EXAMPLES, budget_s=BUDGET_S)
            assert called == api.operations or time.monotonic() - begun > BUDGET_S
            assert verifier.rows("SELECT * FROM agents") == [], "no generated agent is complete"

    asyncio.run(play())
