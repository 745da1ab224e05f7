"""The dashboard as a program, with a verifier and an agent: who is let in, what is shown, what is done."""

import asyncio
import json
from pathlib import Path

import aiohttp

from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.eventual import LIMIT_S, eventually
from tests.fakes.running_dashboard import RunningDashboard, running_dashboard
from tests.fakes.running_verifier import RunningVerifier, running_verifier, verifier_authority
from tests.integration.test_administration_log import encoded

MACHINE = "/machine/agent-1"
FLEET = "/v2.6/allowlists/fleet"
NAMED = {"runtime_policy": "", "runtime_policy_name": "fleet"}


def test_n26_n27_n28_a_machine_falls_is_explained_accepted_and_returns(tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(tmp_path) as verifier,
        ):
            assert (await verifier.admin("POST", FLEET, encoded(policy_of(agent.files)))).code == 201
            await verifier.add(agent, **NAMED)
            await verifier.until_passing(agent)
            async with running_dashboard(verifier) as board:
                await _is_shut_to_others(board)
                await board.log_in()
                assert "attested" in await board.page("/")
                assert "No machine is like that" in await board.page("/?state=failed")
                await _falls(board, verifier, agent)
                await _is_accepted(board, verifier, agent)
                await _is_stopped_and_deleted(board, verifier, agent)

    asyncio.run(play())


async def _is_shut_to_others(board: RunningDashboard) -> None:
    for path in ("/", MACHINE, "/events", "/policies", "/services"):
        assert (await board.ask(path))[0] == 403
    assert (await board.ask("/login?token=guess"))[0] == 403
    assert (await board.ask("/static/dashboard.css"))[0] == 200
    assert (await board.ask("/static/handlers.py"))[0] == 404
    code, text, headers = await board.ask(board.link, Host="rebound.example.com")
    assert code == 421
    assert "another page" in text
    assert "Server" not in headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")


async def _falls(board: RunningDashboard, verifier: RunningVerifier, agent: AttestingAgent) -> None:
    async with board.client.get(f"{board.origin}/events", cookies=board.jar) as stream:
        agent.machine.measure("/opt/<script>alert(1)</script>", b"new")
        assert await _news(stream, "Invalid Quote") == "agent-1"
    await verifier.until_failed(agent)
    page = await board.page(MACHINE)
    assert "/opt/&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in page
    assert "keylime_tenant approve -u agent-1" in page
    assert "Get Quote -&gt; Invalid Quote" in page
    assert "not judged: no policy for it" in page
    await eventually(lambda: _shows(board, "/", "failed machines in the last 48 hours: 1 now"))
    assert "agent-1" in await board.page("/?state=failed&q=fleet")


async def _shows(board: RunningDashboard, path: str, text: str) -> bool:
    return text in await board.page(path)


async def _news(stream: aiohttp.ClientResponse, text: str) -> str:
    async with asyncio.timeout(LIMIT_S):
        async for line in stream.content:
            if line.startswith(b"data: ") and text in (news := json.loads(line[6:]))["text"]:
                return str(news["agent_id"])
    raise AssertionError("the stream has ended")


async def _is_accepted(board: RunningDashboard, verifier: RunningVerifier, agent: AttestingAgent) -> None:
    accept = f"{MACHINE}/accept"
    assert "/opt/&lt;script&gt;" in await board.page(accept)
    for changes in ({"form_token": "0" * 64}, {"seal": "0" * 64}):
        assert (await board.confirm(accept, **changes))[0] in (403, 409)
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
        assert (await board.ask(accept, form={}, **headers))[0] == 403
    assert (await verifier.status(agent))["attestation_status"] == "FAIL"
    assert await board.confirm(accept) == (303, MACHINE)
    await verifier.until_passing(agent)
    assert (await board.ask(accept))[0] == 409
    compared = await board.page("/policies/runtime/fleet?from=1&to=2")
    assert "+ digests /opt/&lt;script&gt;alert(1)&lt;/script&gt;" in compared
    assert "agent-1" in compared
    assert "/policies/runtime/fleet" in await board.page("/policies")
    assert "agent-1" in await board.page("/revocations")
    services = await board.page("/services")
    assert "cannot reach the registrar" in services
    assert "ready" in services
    assert "256 of 256" in services


async def _is_stopped_and_deleted(
    board: RunningDashboard, verifier: RunningVerifier, agent: AttestingAgent
) -> None:
    assert await board.confirm(f"{MACHINE}/stop") == (303, MACHINE)
    assert "stopped by an operator" in await board.page(MACHINE)
    assert await board.confirm(f"{MACHINE}/reactivate") == (303, MACHINE)
    await verifier.until_passing(agent)
    assert await board.confirm(f"{MACHINE}/delete") == (303, MACHINE)
    assert "not at the verifier any more" in await board.page(MACHINE)
    assert (await board.ask("/machine/nobody"))[0] == 404
    assert (await board.ask("/machine/a%2Fb"))[0] == 404


def test_n26_a_link_that_two_have_opens_nothing_any_more(tmp_path: Path) -> None:
    async def play() -> None:
        async with running_verifier(tmp_path) as verifier, running_dashboard(verifier) as board:
            await board.log_in()
            assert "The verifier has no machines yet" in await board.page("/")
            assert (await board.ask(board.link))[0] == 200  # the same browser again
            mine, board.jar = board.jar, {}
            assert (await board.ask(board.link))[0] == 403
            board.jar = mine
            assert (await board.ask("/"))[0] == 403

    asyncio.run(play())
