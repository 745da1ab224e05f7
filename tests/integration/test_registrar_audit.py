"""What the registrar keeps of who did what: registrations, replaced keys, deletions, and what was refused."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from keylime.database.engine import parse_database_url
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database, open_database
from keylime_registrar.audit import Act, Audit, entry
from keylime_registrar.schema import SCHEMA, events
from tests.fakes.databases import KINDS, SERVERS, DatabaseServer
from tests.fakes.running_registrar import RunningRegistrar, running_registrar
from tests.fakes.software_identity import SoftwareIdentity, b64
from tests.fakes.tls_material import Authority, self_signed

VENDOR = Authority("vendor")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registrar.sqlite'}"
    server: DatabaseServer = request.getfixturevalue(SERVERS[request.param])
    return server.new_database()


async def audit(registrar: RunningRegistrar, query: str = "") -> list[dict[str, Any]]:
    answer = await registrar.admin("GET", f"/v2.6/audit{query}")
    assert answer.code == 200, answer
    assert answer.results["more"] is False
    return list(answer.results["events"])


async def registered(registrar: RunningRegistrar, agent: str, who: SoftwareIdentity, **fields: object) -> int:
    answer = await registrar.plain("POST", f"/v2.6/agents/{agent}", who.registration(**fields))
    return answer.code


async def life(registrar: RunningRegistrar) -> None:
    """What becomes of two machines, one of which wants to be the other."""
    mine, other = SoftwareIdentity(), SoftwareIdentity()
    ekcert = b64(mine.ek_certificate(VENDOR))
    first, second = self_signed("agent-1"), self_signed("agent-1")
    await registrar.enrol("agent-1", mine, mtls_cert=first.pem)
    await registrar.enrol("agent-1", mine, mtls_cert=first.pem, ip="10.0.0.9")  # an address is not trusted
    await registrar.enrol("agent-1", mine, mtls_cert=second.pem)
    assert await registered(registrar, "agent-1", other) == 403
    assert await registered(registrar, "agent-1", other) == 403
    await registrar.enrol("agent-2", mine, ekcert=ekcert)
    wrong = {"auth_tag": "0" * 96}
    assert await registered(registrar, "agent-3", other) == 200
    assert (await registrar.plain("PUT", "/v2.6/agents/agent-3", wrong)).code == 400
    assert (await registrar.plain("POST", "/v2.6/agents/agent-4", {"ek_tpm": "AA=="})).code == 400
    assert (await registrar.admin("DELETE", "/v2.6/agents/agent-9")).code == 404
    assert (await registrar.admin("DELETE", "/v2.6/agents/agent-1")).code == 200
    found = await audit(registrar)
    assert [(one["id"], one["kind"], one["agent_id"]) for one in found] == [
        (1, "registered", "agent-1"),
        (2, "keys_replaced", "agent-1"),
        (3, "registration_refused", "agent-1"),
        (4, "registered", "agent-2"),
        (5, "registration_refused", "agent-3"),
        (6, "registration_refused", "agent-4"),
        (7, "refused", "agent-9"),
        (8, "registration_deleted", "agent-1"),
    ]
    told = {one["id"]: one["details"] for one in found}
    assert told[1]["regcount"] == 1
    assert told[1]["source"] == "127.0.0.1/32"
    assert (told[2]["changed"], told[2]["regcount"]) == (["mtls_key"], 3)
    assert told[1]["ek_sha256"] == told[2]["ek_sha256"]
    assert told[1]["mtls_key_sha256"] != told[2]["mtls_key_sha256"]
    assert told[4]["same_tpm"] == ["agent-1"]
    assert [told[number]["result"] for number in (3, 5, 6)] == ["identity_changed", "wrong_tag", "refused"]
    assert told[7] == {
        "call": "DELETE /agents/{agent_id}",
        "code": 404,
        "reason": "Agent with ID 'agent-9' not found",
    }
    assert [bool(one["actor"]) for one in found] == [False] * 6 + [True] * 2
    assert found[7]["actor"].startswith("'CN=operator' (serial number ")
    assert all(one["request_id"] for one in found)
    assert len({one["request_id"] for one in found}) == len(found)
    assert [one["id"] for one in await audit(registrar, "?after=6")] == [7, 8]
    assert await audit(registrar, f"?since={found[-1]['at'] + 3600}") == []
    strangers = await registrar.plain("GET", "/v2.6/audit")
    assert strangers.code == 400, "only over TLS"


def test_what_becomes_of_registrations_is_kept(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"KEYLIME_REGISTRAR_DATABASE_URL": place}

    async def scenario() -> None:
        async with running_registrar(tmp_path, environ) as registrar:
            await life(registrar)
        async with running_registrar(tmp_path, environ) as registrar:
            assert len(await audit(registrar)) == 8, "also after a restart"
            await registrar.enrol("agent-1", SoftwareIdentity())
            assert [(one["id"], one["kind"]) for one in await audit(registrar, "?after=8")] == [
                (9, "registered")
            ]

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    lines = [record.getMessage() for record in caplog.records]
    refused = [line for line in lines if line.startswith("refused to 'CN=operator'")]
    assert len(refused) == 1
    assert refused[0].endswith("DELETE /agents/agent-9: 404 Agent with ID 'agent-9' not found")
    assert len([line for line in lines if "registration from 127.0.0.1 refused" in line]) == 3


def test_r20_old_lines_are_forgotten_and_those_of_strangers_when_they_are_too_many(place: str) -> None:
    async def act(database: Database) -> None:
        kept = Audit(database, retention_s=1000, most_unasked=3)
        long_ago = {**entry(Act.REGISTERED, "old", {}), "at": 5}
        await kept.tell(long_ago)
        await kept.tell(long_ago)  # the same once more, because its end was lost
        for number in range(5):
            await kept.tell(entry(Act.REGISTERED, f"agent-{number}", {}))
            await kept.tell(
                entry(Act.REGISTRATION_DELETED, f"agent-{number}", {}, administrator="'CN=alice'")
            )
        assert [event.id for event in (await kept.audit(None, 0, 20)).events] == [*range(1, 12)]
        assert await kept.prune() == 3
        left = (await kept.audit(None, 0, 20)).events
        assert [event.id for event in left if event.actor is None] == [6, 8, 10]
        assert [event.id for event in left if event.actor] == [3, 5, 7, 9, 11]
        assert await kept.prune() == 0
        for_good = Audit(database, retention_s=0, most_unasked=3)
        await database.write("test", lambda connection: connection.execute(sa.update(events).values(at=5)))
        assert await for_good.prune() == 0

    async def scenario() -> None:
        database = open_database(parse_database_url(place, work_dir=Path("/nowhere"), sqlite_name=""))
        try:
            await prepare_schema(database, SCHEMA, migrate=True)
            await act(database)
        finally:
            await database.close()

    asyncio.run(scenario())
