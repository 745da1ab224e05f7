"""The history of agents: what is told, by whom, in which order, and for how long; on every database."""

import asyncio
import base64
import contextlib
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec import structs
from msgspec.structs import replace

from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database
from keylime.identifiers import AgentId
from keylime.messages.verifier import RuntimePolicyRequest
from keylime_verifier.agents.events import Actor, EventKind, Occurrence
from keylime_verifier.agents.records import AgentRecord, PolicyPart
from keylime_verifier.agents.refusals import InTheWay
from keylime_verifier.agents.shards import MemberId
from keylime_verifier.database.history import History, new_token, write_events
from keylime_verifier.database.schema import SCHEMA, events
from keylime_verifier.policies.checks import check_runtime_policy
from keylime_verifier.policies.named import RUNTIME_KIND, NamedPolicies
from keylime_verifier.polling.fencing import Ruling
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.databases import KINDS, SERVERS, DatabaseServer
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import RunningVerifier, enrolment
from tests.fakes.statements import execute, opened, rows_of
from tests.fakes.tenant_program import tenant
from tests.integration.test_administration_log import encoded
from tests.integration.test_verifier_fencing import TARGETS, Scene, play, rejected
from tests.integration.test_verifier_policies import scene

LIST, AGENT = "/v2.6/allowlists/fleet", "/v2.6/agents/agent-1"
_WRITERS, _EACH = 4, 25


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'history.sqlite'}"
    server: DatabaseServer = request.getfixturevalue(SERVERS[request.param])
    return server.new_database()


async def told(verifier: RunningVerifier) -> list[dict[str, Any]]:
    answer = await verifier.admin("GET", f"{AGENT}/history")
    assert (answer.code, answer.results["more"]) == (200, False)
    events: list[dict[str, Any]] = answer.results["events"]
    return events


def test_the_history_of_an_agent_from_its_enrolment_past_its_deletion(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        assert (await verifier.admin("GET", f"{AGENT}/history")).code == 404
        assert (await verifier.admin("POST", LIST, encoded(policy_of(agent.files)))).code == 201
        named = {"runtime_policy": "", "runtime_policy_name": "fleet"}
        assert (await verifier.admin("POST", AGENT, enrolment(agent, **named))).code == 200
        await verifier.until_passing(agent, 2)
        agent.reboot()
        # Told with the passes of that second.
        await eventually(lambda: verifier.rows("SELECT 1 FROM events WHERE kind = 'rebooted'"))
        assert (await verifier.admin("GET", AGENT)).results["ima_entries"] == len(agent.files)
        more = agent.files | {"/opt/new": b"new"}
        assert (await verifier.admin("PUT", LIST, encoded(policy_of(more)))).code == 201
        await verifier.until_passing(agent, 2)
        agent.tamper("/usr/bin/backdoor")
        await verifier.until_failed(agent)
        await eventually(lambda: verifier.rows("SELECT 1 FROM events WHERE kind = 'delivery'"))
        assert (await verifier.admin("PUT", f"{AGENT}/stop")).code == 200
        events = await told(verifier)
        assert (await verifier.admin("DELETE", AGENT)).code == 200
        # Routine passes are not told, and V comes after the first one.
        kinds = [event["kind"] for event in events]
        assert kinds == [
            "enrolled",
            "state",
            "state",
            "rebooted",
            "policy_replaced",
            "held_to",
            "state",
            "delivery",
            "stopped",
        ]
        ids = [event["id"] for event in events]
        assert ids == sorted(set(ids))
        by = {event["kind"]: event for event in events}
        for kind in ("enrolled", "policy_replaced", "stopped"):
            assert by[kind]["actor"].startswith("'CN=")
            assert "(serial number" in by[kind]["actor"]
            assert by[kind]["request_id"]
        assert by["enrolled"]["details"]["runtime_policy"] == "fleet"
        assert by["policy_replaced"]["policy"] == "runtime/fleet"
        new_hash = by["policy_replaced"]["details"]["sha256"]
        assert by["held_to"]["details"]["runtime_policy"] == {"name": "fleet", "sha256": new_hash}
        failure = by["state"]  # the last one
        assert (failure["actor"], failure["request_id"]) == (None, None)
        details = failure["details"]
        assert (details["to"], details["is_polled"]) == ("Invalid Quote", False)
        assert details["runtime_policy"] == {"name": "fleet", "sha256": new_hash}
        assert [one["path"] for one in details["findings"]] == ["/usr/bin/backdoor"]
        assert details["revocation"] == verifier.rows("SELECT revocation_id FROM revocations")[0][0]
        assert [event["kind"] for event in await told(verifier)] == [
            *(kind for kind in kinds if kind != "policy_replaced"),
            "deleted",
        ]
        done = await tenant(verifier, "-c", "history", "-u", "agent-1")
        lines = [line.strip() for line in done.stdout.splitlines()]
        for words in (
            f"by runtime policy fleet, sha256 {new_hash}",
            f"by {by['stopped']['actor']}, request {by['stopped']['request_id']}",
            "path      /usr/bin/backdoor",
            f"revocation {details['revocation']}",
        ):
            assert words in lines, words
        titles = [line.split("UTC  ")[1] for line in lines if "UTC  " in line]
        assert titles == [
            "enrolled",
            "Start -> Provide V",
            "Provide V -> Get Quote",
            "rebooted, and attested from the first entry of its list",
            "passed for the first time under other policies",
            "Get Quote -> Invalid Quote",
            "revocation delivered: agent agent-1",
            "stopped by an operator",
            "deleted",
        ]
        done = await tenant(verifier, "--json", "-c", "history", "-u", "agent-1")
        document = json.loads(done.stdout)
        assert document == {"agent_id": "agent-1", "events": await told(verifier)}
        done = await tenant(verifier, "-c", "history", "-u", "other", code=1)
        assert "knows nothing of agent other, now or before" in done.stderr
        second = await verifier.admin("GET", f"{AGENT}/history?after={ids[0]}&limit=2")
        assert [event["id"] for event in second.results["events"]] == ids[1:3]
        assert second.results["more"]
        for query in ("after=x", "after=-1", "limit=0", "limit=1001", f"after={1 << 63}"):
            refused = await verifier.admin("GET", f"{AGENT}/history?{query}")
            assert (refused.code, refused.status.split()[0]) == (400, query.partition("=")[0])

    scene(tmp_path, act)


def test_a_verdict_that_is_written_twice_is_told_once_and_one_that_does_not_count_not_at_all(
    url: str,
) -> None:
    async def act(scene: Scene, record: AgentRecord) -> None:
        event = Occurrence(token=new_token(), kind=EventKind.STATE, agent_id=record.agent_id, at=1)
        for _ in range(2):  # as after a commit whose answer was lost
            await scene.store.record_change(
                rejected(record, 5), None, TARGETS, held_to=scene.held_to, events=[event]
            )
        await scene.store.delete(record.agent_id)
        late = Occurrence(token=new_token(), kind=EventKind.STATE, agent_id=record.agent_id, at=2)
        await scene.store.record_change(
            rejected(record, 6), None, TARGETS, held_to=scene.held_to, events=[late]
        )
        assert await scene.rows("SELECT id, kind FROM events ORDER BY id") == [
            (1, "enrolled"),
            (2, "state"),
            (3, "deleted"),
        ]

    play(url, act)


def history(url: str, act: Callable[[Database], Awaitable[None]]) -> None:
    async def run() -> None:
        database = opened(url)
        try:
            await prepare_schema(database, SCHEMA, migrate=True)
            await act(database)
        finally:
            await database.close()

    asyncio.run(run())


def test_whoever_has_read_up_to_an_id_never_finds_a_smaller_one_later(url: str) -> None:
    """Several verifiers write at the same time, some of them give up in the end, and somebody reads along."""

    class GaveUp(Exception):
        pass

    async def act(database: Database) -> None:
        async def write(name: str) -> None:
            others = opened(url)
            try:
                for number in range(_EACH):
                    event = Occurrence(
                        token=new_token(), kind=EventKind.STATE, agent_id=AgentId(name), at=number
                    )

                    def work(connection: Any, event: Occurrence = event, number: int = number) -> None:
                        write_events(connection, [event])
                        if number % 5 == 4:
                            raise GaveUp

                    with contextlib.suppress(GaveUp):
                        await others.write("test", work)
            finally:
                await others.close()

        writers = asyncio.gather(*(write(f"agent-{one}") for one in range(_WRITERS)))
        seen: list[int] = []
        is_over = False
        while not is_over:
            is_over = writers.done()  # and then everything is there
            last = seen[-1] if seen else 0
            newer = sa.select(events.c.id).where(events.c.id > last).order_by(events.c.id)
            seen.extend(row.id for row in await rows_of(database, newer))
        await writers
        # No gap ever showed: each id was there when the next one was.
        assert seen == list(range(1, _WRITERS * _EACH * 4 // 5 + 1))

    history(url, act)


def test_what_is_older_than_the_retention_is_forgotten(url: str) -> None:
    async def act(database: Database) -> None:
        def work(connection: Any) -> None:
            at = [1, 2] * 400 + [None]
            write_events(
                connection,
                [
                    Occurrence(token=new_token(), kind=EventKind.STATE, agent_id=AgentId("a"), at=one)
                    for one in at
                ],
            )

        await database.write("test", work)
        assert await History(database, 0).prune() == 0
        assert await History(database, 3600).prune() == 800
        found = await History(database, 3600).of_agent(AgentId("a"), 0, 10)
        assert found is not None
        assert [event.id for event in found.events] == [801]
        # Not even an id of what was forgotten is used again.
        await execute(database, "DELETE FROM events")
        await database.write(
            "test",
            lambda connection: write_events(
                connection, [Occurrence(token=new_token(), kind=EventKind.STATE)]
            ),
        )
        assert [row.id for row in await rows_of(database, "SELECT id FROM events")] == [802]

    history(url, act)


def test_versions_and_parts_are_stored_alike(url: str) -> None:
    """And names that differ in case alone are different ones, whatever the database thinks."""

    async def act(scene: Scene, record: AgentRecord) -> None:
        by = Actor("'CN=alice' (serial number 7)", "r")
        kept = NamedPolicies[RuntimePolicyRequest](
            scene.database,
            RUNTIME_KIND,
            partial(check_runtime_policy, signature_required=False),
            lambda _is_affected: 0,
            kept=2,
        )
        for name in ("web", "Web"):
            await kept.create(name, request(1), by=by)
        for number in (2, 3):
            await kept.replace("web", request(number), by=by)
        await kept.restore(
            "web", 2, lambda content: RuntimePolicyRequest(runtime_policy=b64(content.text)), by=by
        )
        found = await kept.versions("web")
        assert [(one.version, one.is_current, one.actor) for one in found.versions] == [
            (4, True, by.certificate),
            (3, False, by.certificate),
        ]
        assert found.versions[0].at is not None
        assert [one.version for one in (await kept.versions("Web")).versions] == [1]
        assert await scene.rows("SELECT count(*) FROM policy_texts") == [(4,)]  # "{}" and three of these
        with pytest.raises(InTheWay, match="replaced meanwhile"):
            await kept.replace("web", structs.replace(request(5), replaces="0" * 64), by=by)
        parts = PolicyPart("policy"), PolicyPart("web", 2_000_000_000), PolicyPart("gone", 1)
        enrolment = replace(record.enrolment, runtime_parts=parts)
        changed = await scene.store.update(record.generation, enrolment, None, "2.5", {}, by=by)
        assert changed is not None
        assert (await scene.current(record)).enrolment.runtime_parts == parts
        held_to = (await scene.store.versions(MemberId("me")))[record.agent_id].policies
        rows = await scene.rows("SELECT name, content_hash FROM policies")
        hashes = {row[0]: row[1] for row in rows}
        assert held_to.runtime == f"{hashes['policy']}+{hashes['web']}"
        assert held_to.until == 2_000_000_000
        assert (await kept.versions("web")).agents == [record.agent_id]
        assert (await kept.versions("Web")).agents == []
        with pytest.raises(InTheWay, match="in use by agent"):
            await kept.delete("web", by=by)
        await kept.delete("Web", by=by)
        # What it is held to now is what a rejection is measured by.
        assert (
            await scene.store.record_change(rejected(changed, 5), None, TARGETS, held_to=held_to)
            is Ruling.COUNTS
        )

    play(url, act)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def request(number: int) -> RuntimePolicyRequest:
    return RuntimePolicyRequest(runtime_policy=b64(policy_of({"/x": bytes([number])})))
