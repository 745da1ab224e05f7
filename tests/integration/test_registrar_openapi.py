"""The registrar against its own description: real agents and generated calls are answered as it says."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.api_documents import DOCUMENTS
from tests.fakes.running_registrar import registrar_authority, running_registrar
from tests.fakes.software_identity import SoftwareIdentity
from tests.integration.test_registrar import machine

pytest.importorskip("schemathesis")
BUDGET_S = 12.0
EXAMPLES = 3


def test_every_answer_is_as_the_description_says(tmp_path: Path) -> None:
    from tests.described_calls import Described

    async def play() -> None:
        async with running_registrar(tmp_path / "work") as registrar:
            answer = await registrar.plain("GET", "/openapi.json")
            assert answer.body == (await registrar.admin("GET", "/openapi.json")).body
            assert answer.body == DOCUMENTS["registrar"], "the manual's"
            url = f"https://127.0.0.1:{registrar.tls_port}"
            api = Described.to_administrators(answer.body, url, registrar_authority(), tmp_path)
            await asyncio.to_thread(live, api, machine())
            begun = time.monotonic()
            called = await asyncio.to_thread(api.call_everything, examples=EXAMPLES, budget_s=BUDGET_S)
            assert called == api.operations or time.monotonic() - begun > BUDGET_S
            remaining = await registrar.admin("GET", "/v2/agents/")
            assert remaining.results == {"uuids": []}, "no generated registration is a TPM's"

    def live(api: Described, identity: SoftwareIdentity) -> None:
        one = {"path_parameters": {"agent_id": "web-01"}}
        path = "/v2.6/agents/{agent_id}"
        blob = api.call("POST", path, body=identity.registration(ip="192.0.2.7", port=9002), **one)["blob"]
        api.call("PUT", path, body={"auth_tag": identity.answer(blob, "web-01")}, **one)
        assert api.call("GET", "/v2.6/agents") == {"uuids": ["web-01"]}
        assert api.call("GET", path, **one)["port"] == 9002
        api.call("DELETE", path, **one)

    asyncio.run(play())
