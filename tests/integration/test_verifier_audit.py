"""The audit: acts and refusals of administrators, and what a verifier did by itself, as it is shown."""

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from keylime.database.transactions import Database
from keylime_verifier.agents.events import EventKind, Occurrence
from keylime_verifier.database.history import History, new_token, write_events
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.running_verifier import RunningVerifier
from tests.fakes.tenant_program import tenant
from tests.integration.test_administration_log import encoded
from tests.integration.test_verifier_history import history
from tests.integration.test_verifier_policies import scene


def test_what_was_done_and_what_was_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        policy = encoded(policy_of(agent.files))
        assert (await verifier.admin("POST", "/v2.6/allowlists/fleet", policy)).code == 201
        assert (await verifier.admin("POST", "/v2.6/allowlists/fleet", policy)).code == 409
        assert (await verifier.admin("POST", "/v2.6/mbpolicies/boot", b"{")).code == 400
        assert (await verifier.admin("PUT", "/v2.6/agents/agent-9/stop")).code == 404
        await verifier.add(agent)
        await verifier.until_passing(agent)
        # The registrar does not answer: what the verifier says is shown all the same.
        done = await tenant(verifier, "--json", "-c", "audit", "-rp", "1", code=1)
        assert "cannot reach the registrar at https://127.0.0.1:1" in done.stderr
        events: list[dict[str, Any]] = json.loads(done.stdout)["events"]
        shown = [(event["kind"], event["agent_id"], event["policy"]) for event in events]
        assert shown[:5] == [
            ("policy_stored", None, "runtime/fleet"),
            ("refused", None, "runtime/fleet"),
            ("refused", None, "measured_boot/boot"),
            ("refused", "agent-9", None),
            ("enrolled", "agent-1", None),
        ]
        assert all(event["actor"].startswith("'CN=") and event["request_id"] for event in events[:5])
        assert [event["details"]["code"] for event in events[1:4]] == [409, 400, 404]
        assert events[3]["details"]["call"] == "PUT /agents/{agent_id}/stop"
        assert {event["actor"] for event in events[5:]} == {None}
        # What was refused has not happened to anybody.
        assert (await verifier.admin("GET", "/v2.6/agents/agent-9/history")).code == 404
        assert {event["service"] for event in events} == {"verifier"}
        done = await tenant(verifier, "-c", "audit", "--since", "1h", "-rp", "1", code=1)
        lines = [line for line in done.stdout.splitlines() if "UTC  " in line]
        assert len(lines) >= len(events)
        assert "refused: PUT /agents/{agent_id}/stop 404 agent id not found, by 'CN=" in lines[3]
        assert events[3]["request_id"] in lines[3]
        assert lines[5].endswith(", by itself")
        refused = await verifier.admin("GET", "/v2.6/audit?since=x")
        assert refused.code == 400

    scene(tmp_path, act)
    warnings = [record.getMessage() for record in caplog.records if "refused to 'CN=" in record.getMessage()]
    assert len(warnings) == 3
    assert "PUT /agents/agent-9/stop: 404 agent id not found" in warnings[2]


def test_what_happened_since_a_time_is_found_by_halves(tmp_path: Path) -> None:
    async def act(database: Database) -> None:
        kept = History(database, 0)
        assert (await kept.audit(5, 0, 10)).events == []
        told = [Occurrence(token=new_token(), kind=EventKind.STATE, at=10 * one) for one in range(1, 8)]
        await database.write("test", lambda connection: write_events(connection, told))
        await database.write(
            "test", lambda connection: connection.execute(sa.text("DELETE FROM events WHERE id < 3"))
        )

        async def ids(since: float | None, after: int = 0) -> list[int]:
            return [event.id for event in (await kept.audit(since, after, 10)).events]

        assert await ids(None) == [3, 4, 5, 6, 7]
        assert await ids(1) == [3, 4, 5, 6, 7]
        assert await ids(40) == [4, 5, 6, 7]
        assert await ids(41) == [5, 6, 7]
        assert await ids(70, after=2) == [7]
        assert await ids(71) == []
        assert await ids(40, after=6) == [7]

    history(f"sqlite:///{tmp_path / 'audit.sqlite'}", act)
