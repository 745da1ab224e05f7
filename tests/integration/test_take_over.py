"""An earlier Keylime's database is taken over by the daemons themselves: read only, all or nothing, once."""

import asyncio
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from keylime.errors import ConfigError
from keylime.pki.certificates import public_key_text
from keylime.takeover.command import ImportRequest
from keylime.takeover.report import Fate, ItemKind, TakeoverReport
from keylime_registrar.assembly import import_database as import_registrations
from keylime_registrar.config import load_config as load_registrar_config
from keylime_verifier.assembly.tables import import_database, prepare_database
from keylime_verifier.config import load_config
from tests.fakes import forked_programs
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.databases import engine_for
from tests.fakes.forked_programs import Order
from tests.fakes.mariadb import running_mariadb
from tests.fakes.old_databases import RELEASES, copy_to_server, old_answers, old_installation
from tests.fakes.postgresql import PostgresServer
from tests.fakes.running_registrar import running_registrar
from tests.fakes.running_verifier import enrolment, install_certificates, running_verifier, verifier_authority

# Nobody is there: rounds that were in vain must not change what is shown.
PATIENT = {
    "KEYLIME_VERIFIER_MAX_RETRIES": "1000",
    "KEYLIME_VERIFIER_RETRY_INTERVAL": "3600",
    "KEYLIME_VERIFIER_SILENCE_INTERVAL": "3600",
}
# How our answers differ on purpose: what depends on the clock, on options, or is a quirk of the other.
ANSWERED_DIFFERENTLY = {
    "attestation_status",
    "attestation_period",
    "maximum_attestation_interval",
    "has_runtime_policy",
    "v",
}
NOT_TAKEN = {"odd-empty-texts", "odd-state-null", "odd-terminated"}
MENDED: dict[str, set[str]] = {
    # Asked on as failed ones are, and silent.
    "odd-state-99": {
        *("operational_state", "attestation_count", "last_received_quote"),
        *("last_event_id", "severity_level"),
    },
    "odd-provide-v": {"has_mb_refstate"},  # an empty text is none
}


def traces(directory: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file, the names of all files included."""
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in directory.iterdir()
        if path.is_file()
    }


def environment(directory: Path, **more: str) -> dict[str, str]:
    return {"KEYLIME_DIR": str(directory), **more}


def import_agents(
    directory: Path, url: str | None = None, *, dry: bool = False, more: dict[str, str] | None = None
) -> TakeoverReport:
    config = load_config(environment(directory, **(more or {})))
    return asyncio.run(import_database(config, ImportRequest(url, is_dry=dry, as_json=False)))


def import_registered(
    directory: Path, url: str | None = None, *, dry: bool = False, more: dict[str, str] | None = None
) -> TakeoverReport:
    config = load_registrar_config(environment(directory, **(more or {})))
    return asyncio.run(import_registrations(config, ImportRequest(url, is_dry=dry, as_json=False)))


def fates(report: TakeoverReport, kind: ItemKind) -> dict[str, Fate]:
    return {item.name: item.fate for item in report.items if item.kind is kind}


@pytest.mark.parametrize("release", RELEASES)
def test_nothing_of_an_old_file_changes_and_every_row_is_accounted_for(tmp_path: Path, release: str) -> None:
    old_installation(release, tmp_path)
    before = traces(tmp_path)
    rehearsals = import_agents(tmp_path, dry=True), import_registered(tmp_path, dry=True)
    assert traces(tmp_path) == before, "a rehearsal writes nothing, nowhere"
    reports = import_agents(tmp_path), import_registered(tmp_path)
    assert {name: trace for name, trace in traces(tmp_path).items() if name in before} == before
    assert [report.items for report in reports] == [report.items for report in rehearsals]
    for file, table, kind, report in (
        ("cv_data", "verifiermain", ItemKind.AGENT, reports[0]),
        ("reg_data", "registrarmain", ItemKind.REGISTRATION, reports[1]),
    ):
        name = f"file:{tmp_path / file}.sqlite?mode=ro&immutable=1"
        with closing(sqlite3.connect(name, uri=True)) as old:
            (rows,) = old.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
        assert len([item for item in report.items if item.kind is kind]) == rows
        assert all(item.remarks for item in report.items if item.fate is Fate.NOT_TAKEN)
        assert {f"d432fbb3-d2f1-4a97-9ef7-75bd81c0b00{n}" for n in range(4)} <= {
            item.name for item in report.items if item.kind is kind and item.fate is Fate.TAKEN
        }
    again = import_agents(tmp_path), import_registered(tmp_path)
    assert all(report.is_done_before for report in again)
    assert all("nothing new" in report.summary() for report in again)


@pytest.mark.parametrize("release", ["7.14.3-odd", "7.14.3-push"])
def test_agents_and_policies_are_shown_as_before(tmp_path: Path, release: str) -> None:
    old_installation(release, tmp_path)
    answers = old_answers(release)

    async def scenario() -> None:
        async with running_verifier(tmp_path, PATIENT) as verifier:
            for agent_id, answer in answers["verifier"].items():
                if "/" in agent_id or answer["status"] != 200:
                    continue
                shown = await verifier.admin("GET", f"/v2.6/agents/{agent_id}")
                if agent_id in NOT_TAKEN or answer["body"]["results"]["ip"] is None:
                    assert shown.code == 404, agent_id
                    continue
                expected = answer["body"]["results"]
                left_out = ANSWERED_DIFFERENTLY | MENDED.get(agent_id, set())
                found = {name: shown.results[name] for name in expected}
                if found["operational_state"] == 1:  # the other one had given up on it when it was asked
                    left_out = left_out | {"operational_state", "last_event_id", "severity_level"}
                assert {name: one for name, one in found.items() if name not in left_out} == {
                    name: one for name, one in expected.items() if name not in left_out
                }, agent_id
            for kind, path, member in (
                ("allowlists", "allowlists", "runtime_policy"),
                ("mbpolicies", "mbpolicies", "mb_policy"),
            ):
                for name, answer in answers[kind].items():
                    shown = await verifier.admin("GET", f"/v2.6/{path}/{name}")
                    if name in ("fleet", "signed", "boot-v1") or name.startswith("d432fbb3"):
                        text = answer["body"]["results"][member]
                        assert shown.code == (404 if text is None else 200), name
                        assert text is None or shown.results[member] == text, "byte for byte"

    asyncio.run(scenario())


def test_registrations_are_shown_as_before(tmp_path: Path) -> None:
    old_installation("7.14.3-odd", tmp_path)
    answers = old_answers("7.14.3-odd")["registrar"]

    async def scenario() -> None:
        async with running_registrar(tmp_path) as registrar:
            for agent_id, answer in answers.items():
                if "/" in agent_id or answer["status"] != 200:
                    continue
                shown = await registrar.admin("GET", f"/v2.6/agents/{agent_id}")
                expected = answer["body"]["results"]
                if agent_id == "odd-ekcert-pem":  # base64 of the same certificate, as of all others
                    expected = {**expected, "ekcert": answers["odd-ip-any"]["body"]["results"]["ekcert"]}
                if expected["regcount"] is None:
                    expected = {**expected, "regcount": 1}
                assert shown.results == {**shown.results, **expected}, agent_id

    asyncio.run(scenario())


def test_what_an_agent_was_told_stays_with_it(tmp_path: Path) -> None:
    """V went to the key that it was encrypted to; whoever was owed it is still."""
    old_installation("7.14.3-odd", tmp_path)
    import_agents(tmp_path)
    with closing(sqlite3.connect(tmp_path / "cv_data.taken-over.sqlite")) as ours:
        rows = ours.execute("SELECT agent_id, v, v_delivered_to, operational_state, is_polled FROM agents")
        found = {row[0]: row[1:] for row in rows}
        checkpoints = ours.execute("SELECT DISTINCT next_entry, ima_pcr FROM progress").fetchall()
    assert checkpoints == [(0, None)], "the list is judged from its beginning, by our rules"
    assert found["d432fbb3-d2f1-4a97-9ef7-75bd81c0b001"][0] is not None
    assert found["d432fbb3-d2f1-4a97-9ef7-75bd81c0b001"][2:] == (9, 0), "what was rejected stays rejected"
    assert found["d432fbb3-d2f1-4a97-9ef7-75bd81c0b002"][2:] == (7, 1), "silence is not final"
    assert found["odd-provide-v"][1:] == (None, 3, 1)
    assert found["odd-tenant-failed"][2:] == (10, 0)


def test_a_machine_is_attested_on_and_notices_nothing(tmp_path: Path) -> None:
    """Also one whose API version is not known, of which only so much is: it may not fall."""
    old_installation("7.6.0", tmp_path)

    async def scenario() -> None:
        async with AttestingAgent("d432fbb3-d2f1-4a97-9ef7-75bd81c0b000", verifier_authority()) as agent:
            given = enrolment(agent)
            with closing(sqlite3.connect(tmp_path / "cv_data.sqlite")) as old, old:
                old.execute(
                    "UPDATE verifiermain SET ip = ?, port = ?, ak_tpm = ?, mtls_cert = ?, public_key = ?, "
                    "supported_version = '1.0', accept_tpm_signing_algs = ? WHERE agent_id = ?",
                    (
                        *(agent.ip, agent.port, given["ak_tpm"], given["mtls_cert"]),
                        *(public_key_text(agent.payload_key.public_key()), '["ecdsa", "rsassa"]'),
                        agent.agent_id,
                    ),
                )
                policy = policy_of(agent.files)
                old.execute("UPDATE allowlists SET ima_policy = ? WHERE name = 'fleet'", (policy,))
            async with running_verifier(tmp_path, {"KEYLIME_VERIFIER_MAX_RETRIES": "1000"}) as verifier:
                status = await verifier.until_passing(agent, rounds=3)
            assert agent.shares == [], "the payload that it has is not sent again"
        assert status["attestation_count"] > 3, "it counts on"
        assert status["runtime_policy_name"] == "fleet"

    asyncio.run(scenario())


def test_an_agent_that_is_here_stays_as_it_is(tmp_path: Path) -> None:
    old_installation("7.6.0", tmp_path)
    import_agents(tmp_path)
    import_registered(tmp_path)
    first = "d432fbb3-d2f1-4a97-9ef7-75bd81c0b000"
    with closing(sqlite3.connect(tmp_path / "cv_data.taken-over.sqlite")) as ours, ours:
        ours.execute("DELETE FROM agents WHERE agent_id LIKE '%3'")
        ours.execute("DELETE FROM progress WHERE agent_id LIKE '%3'")
        ours.execute("DELETE FROM recipients WHERE agent_id LIKE '%3'")
        ours.execute("UPDATE agents SET ak_tpm = 'another' WHERE agent_id = ?", (first,))
        ours.execute("UPDATE policies SET content_hash = (SELECT min(content_hash) FROM policy_texts)")
    with closing(sqlite3.connect(tmp_path / "reg_data.taken-over.sqlite")) as ours, ours:
        ours.execute("UPDATE registrations SET aik_tpm = x'00' WHERE agent_id = ?", (first,))
    report, registrations = import_agents(tmp_path), import_registered(tmp_path)
    (agent,) = [item for item in report.items if item.kind is ItemKind.AGENT and item.name == first]
    assert agent.fate is Fate.PRESENT
    assert "with another AK, which stays" in str(agent)
    assert fates(report, ItemKind.AGENT)[first[:-1] + "3"] in (Fate.TAKEN, Fate.CHANGED, Fate.NOT_TAKEN)
    (registration,) = [item for item in registrations.items if item.name == first]
    assert "with another TPM or AK, which stays" in str(registration)
    with closing(sqlite3.connect(tmp_path / "cv_data.taken-over.sqlite")) as ours:
        assert ours.execute("SELECT ak_tpm FROM agents WHERE agent_id = ?", (first,)).fetchone() == (
            "another",
        )


def run(program: str, directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "KEYLIME_DIR": str(directory), **environ}
    return forked_programs.run(Order(program, arguments, environ))


def test_the_command_says_what_it_would_do_and_does_it(tmp_path: Path) -> None:
    old_installation("7.14.3-broken", tmp_path / "old")
    install_certificates(tmp_path)  # which takes the longest, and is of no interest here
    shutil.copyfile(tmp_path / "old" / "cv_data.sqlite", tmp_path / "cv_data.sqlite")
    done = run("keylime_verifier", tmp_path, "--import", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["dry_run"] is True
    assert report["counts"]["not taken"] > 0
    assert {"agent", "runtime policy", "measured boot policy"} == {item["kind"] for item in report["items"]}
    assert "PRIVATE KEY" not in done.stdout + done.stderr
    refused = run(
        "keylime_verifier",
        tmp_path,
        KEYLIME_VERIFIER_AUTO_MIGRATE_DB="False",
        KEYLIME_VERIFIER_TLS_DIR="default",
    )
    assert refused.returncode == 1
    assert "take it over by --import" in refused.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.glob("*.sqlite*")) == ["cv_data.sqlite"]
    other = run("keylime_registrar", tmp_path, "--import", str(tmp_path / "old" / "reg_data.sqlite"))
    assert other.returncode == 0, other.stderr
    assert "registrations: 14 taken" in other.stdout.splitlines()[-1]
    assert (tmp_path / "reg_data.sqlite").stat().st_mode & 0o777 == 0o600, "ours has its usual name here"


def test_a_source_that_is_of_no_use_is_one_line(tmp_path: Path) -> None:
    old_installation("7.6.0", tmp_path / "old")
    for url, words in (
        (None, "names no database of an earlier Keylime"),
        (str(tmp_path / "nothing.sqlite"), "is not there"),
        (str(tmp_path / "old" / "reg_data.sqlite"), "holds nothing for keylime_verifier"),
        (f"sqlite:///{Path(__file__)}", "cannot be read"),
        ("oracle://u:hush@h/n", "names oracle"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            import_agents(tmp_path, url)
        assert "hush" not in str(caught.value)
    with closing(sqlite3.connect(tmp_path / "old" / "cv_data.sqlite")) as old, old:
        old.execute("DELETE FROM alembic_version_cloud_verifier")
    with pytest.raises(ConfigError, match="holds no schema revision"):
        import_agents(tmp_path / "old")
    assert not list((tmp_path / "old").glob("*taken-over*")), "nothing is left behind"


def test_rows_without_an_id_or_with_one_twice_stop_nobody(tmp_path: Path) -> None:
    old_installation("7.6.0", tmp_path)
    for file, table in (("cv_data", "verifiermain"), ("reg_data", "registrarmain")):
        with closing(sqlite3.connect(tmp_path / f"{file}.sqlite")) as old, old:
            old.execute(f"CREATE TABLE more AS SELECT * FROM {table} LIMIT 1")  # noqa: S608
            for agent_id in ("", "a b", b"d432fbb3-d2f1-4a97-9ef7-75bd81c0b000", b"\xff"):
                old.execute("UPDATE more SET agent_id = ?", (agent_id,))
                old.execute(f"INSERT INTO {table} SELECT * FROM more")  # noqa: S608
            old.execute("DROP TABLE more")
    for report in (import_agents(tmp_path), import_registered(tmp_path)):
        about = [item.fate for item in report.items if item.kind in (ItemKind.AGENT, ItemKind.REGISTRATION)]
        assert (about.count(Fate.TAKEN), about.count(Fate.NOT_TAKEN)) == (4, 4)
        assert "another row has the same id" in report.text()


def test_an_unknown_revision_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    old_installation("7.14.3-push", tmp_path)
    with closing(sqlite3.connect(tmp_path / "cv_data.sqlite")) as old, old:
        old.execute("UPDATE alembic_version_cloud_verifier SET version_num = 'ffffffffffff'")
        old.execute("ALTER TABLE verifiermain ADD COLUMN something_new TEXT DEFAULT 'x'")
        old.execute("ALTER TABLE verifiermain DROP COLUMN attestation_count")
    report = import_agents(tmp_path)
    assert "this release does not know (schema ffffffffffff)" in report.summary()
    assert list(fates(report, ItemKind.AGENT).values()).count(Fate.TAKEN) == 4


def test_what_was_not_yet_moved_into_the_file_is_read_as_well(tmp_path: Path) -> None:
    old_installation("7.6.0", tmp_path / "live")
    crashed = tmp_path / "crashed"
    crashed.mkdir(mode=0o700)
    with closing(sqlite3.connect(tmp_path / "live" / "cv_data.sqlite")) as old:
        old.execute("PRAGMA journal_mode = WAL")
        old.execute("PRAGMA wal_autocheckpoint = 0")
        with old:
            old.execute("UPDATE verifiermain SET port = 9 WHERE agent_id LIKE '%0'")
        for path in (tmp_path / "live").glob("cv_data*"):
            shutil.copyfile(path, crashed / path.name)
    before = traces(crashed)
    import_agents(crashed)
    assert {name: trace for name, trace in traces(crashed).items() if name in before} == before
    with closing(sqlite3.connect(crashed / "cv_data.taken-over.sqlite")) as ours:
        assert ours.execute("SELECT port FROM agents ORDER BY agent_id").fetchone() == (9,)


def test_going_back_and_forth_loses_nothing(tmp_path: Path) -> None:
    """Ours goes on under its own name, also when the old file is gone; nothing is imported twice."""
    old_installation("7.6.0", tmp_path)
    config = load_config(environment(tmp_path))
    asyncio.run(prepare_database(config))
    with closing(sqlite3.connect(tmp_path / "cv_data.taken-over.sqlite")) as ours, ours:
        for table in ("agents", "progress", "recipients"):
            ours.execute(f"DELETE FROM {table} WHERE agent_id LIKE '%3'")  # noqa: S608
    asyncio.run(prepare_database(load_config(environment(tmp_path))))
    (tmp_path / "cv_data.sqlite").unlink()
    config = load_config(environment(tmp_path))
    assert config.database_url.database == str(tmp_path / "cv_data.taken-over.sqlite")
    asyncio.run(prepare_database(config))
    with closing(sqlite3.connect(tmp_path / "cv_data.taken-over.sqlite")) as ours:
        assert ours.execute("SELECT count(*) FROM agents").fetchone() == (3,), "the deleted one stays deleted"
    shutil.move(tmp_path / "cv_data.taken-over.sqlite", tmp_path / "cv_data.sqlite")
    assert load_config(environment(tmp_path)).database_url.database == str(tmp_path / "cv_data.sqlite")


def test_on_a_server_both_stand_in_one_database(tmp_path: Path, postgres: PostgresServer) -> None:
    check_both_in_one(tmp_path, postgres.new_database())


def check_both_in_one(tmp_path: Path, url: str) -> None:
    """The old tables and ours: by a rehearsal, by the first start, by the flag."""
    engine = engine_for(url)
    copy_to_server("7.14.3-odd", engine.url)
    where = {"KEYLIME_VERIFIER_DATABASE_URL": url, "KEYLIME_REGISTRAR_DATABASE_URL": url}
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    files = import_agents(old_installation("7.14.3-odd", tmp_path / "files"), dry=True)
    try:
        with engine.connect() as connection:
            before = _rows(connection)
        rehearsed = import_agents(work, dry=True, more=where)
        assert rehearsed.items == files.items, "as from the files"
        with engine.connect() as connection:
            assert list(_rows(connection)) == list(before)
        asyncio.run(prepare_database(load_config(environment(work, **where))))  # at the first start
        assert (
            import_registered(work, more=where).items == import_registered(tmp_path / "files", dry=True).items
        )
        assert import_agents(work, more=where).is_done_before
        with engine.connect() as connection:
            after = _rows(connection)
        assert {name: rows for name, rows in after.items() if name in before} == before
        assert len(after["agents"]) == len(
            [one for one in files.items if one.kind is ItemKind.AGENT and one.fate is not Fate.NOT_TAKEN]
        )
    finally:
        engine.dispose()


def test_what_is_in_mariadb_is_taken_as_from_files(tmp_path: Path) -> None:
    with running_mariadb() as server:
        (tmp_path / "both").mkdir()
        check_both_in_one(tmp_path / "both", server.new_database())
        url = server.new_database()
        copy_to_server("7.14.3-odd", make_url(url))
        files = old_installation("7.14.3-odd", tmp_path / "files")
        work = tmp_path / "work"
        work.mkdir(mode=0o700)
        engine = sa.create_engine(url)
        try:
            with engine.connect() as connection:
                before = _rows(connection)
            agents, registered = import_agents(work, url), import_registered(work, f"{url}?charset=utf8")
            with engine.connect() as connection:
                assert _rows(connection) == before
        finally:
            engine.dispose()
        assert agents.items == import_agents(files, dry=True).items
        assert registered.items == import_registered(files, dry=True).items
        assert import_agents(work, url).is_done_before
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            import_agents(work, url.replace("root@", "nobody:hush@"))
        assert "hush" not in str(caught.value)


def _rows(connection: sa.Connection) -> dict[str, list[tuple[Any, ...]]]:
    found = {}
    for name in sorted(sa.inspect(connection).get_table_names()):
        quoted = connection.dialect.identifier_preparer.quote(name)
        query = sa.text(f"SELECT * FROM {quoted} ORDER BY 1")  # noqa: S608
        found[name] = [tuple(row) for row in connection.execute(query)]
    return found
