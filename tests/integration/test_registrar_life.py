"""The registrar under a service manager: ready, reloaded, watched, stopped, migrated."""

import contextlib
import itertools
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.fakes.databases import SERVERS, running_server
from tests.fakes.forked_programs import Order, run
from tests.fakes.kept_connection import ask, certificate_of, connected
from tests.fakes.notify_socket import NotifySocket
from tests.fakes.own_time import OwnTime
from tests.fakes.postgresql import running_postgresql
from tests.fakes.running_registrar import install_certificates, registrar_authority
from tests.fakes.server_process import ServerProcess
from tests.fakes.tls_material import SERVER_AUTH, Authority, Issued, client_context

DUMPS = Path(__file__).parents[1] / "data" / "registrar-schemas"
MIGRATIONS = Path(__file__).parents[2] / "registrar" / "keylime_registrar" / "migrations" / "versions"


def registrar(directory: Path, *arguments: str, **environ: str) -> ServerProcess:
    install_certificates(directory)
    return ServerProcess("keylime_registrar", directory, *arguments, **environ)


def install_server(directory: Path, issued: Issued) -> None:
    (directory / "cv_ca" / "server-cert.crt").write_text(issued.pem)
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "cv_ca" / "server-private.pem").write_bytes(key)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Somebody else is in the middle of a long write."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_the_service_manager_hears_ready_alive_reloading_and_stopping(tmp_path: Path) -> None:
    with (
        NotifySocket(tmp_path) as manager,
        registrar(tmp_path, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000") as process,
    ):
        assert "Listening on 127.0.0.1:" in manager.until("READY=1")["STATUS"]
        assert manager.messages[0].get("READY") == "1", "nothing is said before it is ready"
        began = time.monotonic()
        manager.until("WATCHDOG=1", count=5)
        assert time.monotonic() - began > 0.3, "at half of the period, not more often"
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        process.hang_up()
        reloading = manager.until("RELOADING=1")
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert before < int(reloading["MONOTONIC_USEC"]) < after
        manager.until("READY=1", count=2)
        assert process.stop()[0] == 0
        manager.until("STOPPING=1")
        assert manager.messages[-1]["STOPPING"] == "1"


def test_an_abstract_socket_is_told_too_and_a_missing_one_disturbs_nobody(tmp_path: Path) -> None:
    with NotifySocket() as manager, registrar(tmp_path, NOTIFY_SOCKET=manager.address):
        manager.until("READY=1")
    missing = str(tmp_path / "nobody")
    with registrar(tmp_path, NOTIFY_SOCKET=missing, WATCHDOG_USEC="50000") as process:
        process.ports()
        process.line("the service manager cannot be told anything")
        assert process.stop()[0] == 0
        assert process.text.count("the service manager cannot be told anything") == 1


def test_while_it_waits_for_the_verifiers_files_the_service_manager_knows_what_for(tmp_path: Path) -> None:
    with (
        NotifySocket(tmp_path) as manager,
        ServerProcess("keylime_registrar", tmp_path, NOTIFY_SOCKET=manager.address) as process,
    ):
        wanted = tmp_path / "cv_ca" / "cacert.crt"
        manager.until(f"STATUS=Waiting for keylime_verifier to create {wanted}")
        process.line(r"WARNING - Waiting for keylime_verifier to create \S+; giving up in 10 s")
        install_certificates(tmp_path)
        manager.until("READY=1")


def test_new_certificates_count_from_the_next_connection_on_and_no_request_is_lost(tmp_path: Path) -> None:
    authority = registrar_authority()
    trusting = client_context(authority)
    with registrar(tmp_path) as process:
        _, port = process.ports()
        before = certificate_of(port)
        with connected(port, trusting) as kept:
            assert ask(kept)[0] == 200
            renewed = authority.issue("renewed", usages=(SERVER_AUTH,))
            install_server(tmp_path, renewed)
            assert certificate_of(port) == before, "files are read when told to"
            process.hang_up()
            process.line(" - reloaded")
            assert certificate_of(port) == renewed.certificate
            code, headers, _ = ask(kept)
            assert (code, headers["connection"]) == (200, "close")
            assert kept.recv(1) == b"", "the next request comes with a new handshake"
        assert process.stop()[0] == 0


def test_a_new_authority_for_administrators_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    server_authority, former, later = registrar_authority(), registrar_authority(), Authority("new")
    with registrar(tmp_path) as process:
        _, port = process.ports()

        def code_for(administrators: Authority) -> int | None:
            context = client_context(server_authority, administrators.issue("operator"))
            try:
                with connected(port, context) as connection:
                    return ask(connection, "/v2.5/agents")[0]
            except OSError:
                return None

        assert (code_for(former), code_for(later)) == (200, None)
        later.write(tmp_path / "cv_ca" / "cacert.crt")
        process.hang_up()
        process.line(" - reloaded")
        assert (code_for(former), code_for(later)) == (None, 200)


def test_a_file_that_is_no_good_changes_nothing_and_is_named_in_one_line(tmp_path: Path) -> None:
    bad = [
        ("server-cert.crt", "no certificate"),
        ("server-private.pem", "no key"),
        ("cacert.crt", ""),
        ("cacert.crt", None),
        ("server-cert.crt", Authority("other").issue("x").pem),
    ]
    with registrar(tmp_path) as process:
        _, port = process.ports()
        before = certificate_of(port)
        for count, (file, content) in enumerate(bad, 1):
            path = tmp_path / "cv_ca" / file
            good = path.read_text()
            path.unlink() if content is None else path.write_text(content)
            process.hang_up()
            line = process.line(r".*nothing was reloaded.*", count=count)[0]
            assert str(path) in line
            assert "send SIGHUP again" in line
            assert certificate_of(port) == before
            path.touch(mode=0o600)
            path.write_text(good)
        with connected(port, client_context(registrar_authority())) as connection:
            assert ask(connection)[0] == 200
        assert process.stop()[0] == 0
        assert "Traceback" not in process.text


def test_limits_and_log_levels_are_reloaded_and_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    config, logging = tmp_path / "registrar.conf", tmp_path / "logging.conf"
    config.write_text("[registrar]\nmax_upload_size = 5000\n")
    logging.write_text("")
    files = {"KEYLIME_REGISTRAR_CONFIG": str(config), "KEYLIME_LOGGING_CONFIG": str(logging)}
    body = b"x" * 4000
    request = b"POST /v2.5/agents/a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with registrar(tmp_path, **files) as process:
        port, _ = process.ports()

        def code() -> bytes:
            with connected(port) as connection:
                connection.sendall(request)
                return connection.recv(65536).split()[1]

        assert code() == b"400"
        assert "GET /version from" not in process.text
        config.write_text("[registrar]\nmax_upload_size = 2000\nmalformed_cert_action = reject\n")
        logging.write_text("[logger_keylime]\nlevel = DEBUG\n")
        process.hang_up()
        process.line(" - reloaded")
        process.line(r"WARNING - \[registrar\] malformed_cert_action has changed, which needs a restart")
        assert "max_upload_size has changed" not in process.text
        assert code() == b"413"
        with connected(port) as connection:
            ask(connection)
        process.line("GET /version from")
        logging.write_text("[logger_keylime]\nlevel = LOUD\n")
        process.hang_up()
        line = process.line(r".*nothing was reloaded.*")[0]
        assert str(logging) in line
        assert "LOUD" in line
        assert code() == b"413"


def test_it_stops_in_time_whatever_its_clients_and_its_database_do(tmp_path: Path) -> None:
    with registrar(tmp_path) as process, contextlib.ExitStack() as opened:
        port, tls_port = process.ports()
        tls = client_context(registrar_authority())
        opened.enter_context(connected(tls_port)).sendall(b"\x16\x03\x01")
        opened.enter_context(connected(port)).sendall(b"POST /v2.5/agents/a HTTP/1.1\r\n")
        for context, place in ((None, port), (tls, tls_port)):
            busy = opened.enter_context(connected(place, context))
            busy.sendall(b"PUT /v2.5/agents/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        opened.enter_context(locked(tmp_path / "reg_data.sqlite"))
        waiting = opened.enter_context(connected(port))
        tag = b'{"auth_tag": "x"}'
        waiting.sendall(
            b"PUT /v2.5/agents/a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(tag), tag)
        )
        assert ask(opened.enter_context(connected(port)))[0] == 200
        status, took_s = process.stop()
        assert status == 0, process.text
        assert took_s < 5
        assert "Traceback" not in process.text


def test_liveness_and_readiness_are_told_to_anyone_on_both_ports(tmp_path: Path) -> None:
    with registrar(tmp_path) as process:
        port, tls_port = process.ports()
        for place, tls in ((port, None), (tls_port, client_context(registrar_authority()))):
            with connected(place, tls) as connection:
                code, headers, body = ask(connection, "/healthz")
                assert (code, body) == (200, '{"code":200,"status":"alive","results":{"problems":{}}}')
                assert headers["content-type"] == "application/json"
                assert ask(connection, "/readyz")[0] == 200
                assert ask(connection, "/v2.5/readyz")[0] == 404
                assert ask(connection, "/readyz/x")[0] == 404


def test_a_database_that_cannot_be_written_is_not_ready_but_alive(tmp_path: Path) -> None:
    with registrar(tmp_path) as process:
        port, _ = process.ports()
        with connected(port) as connection:
            with locked(tmp_path / "reg_data.sqlite"):
                deadline = time.monotonic() + 100  # a check of before the lock may be under way
                while (answer := ask(connection, "/readyz"))[0] == 200:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                code, headers, body = answer
                assert (code, headers["retry-after"]) == (503, "5")
                assert '"status":"not ready: database"' in body
                assert "locked" not in body
                assert ask(connection, "/healthz")[0] == 200
            deadline = time.monotonic() + 20
            while ask(connection, "/readyz")[0] != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)


@pytest.mark.parametrize(
    ("kind", "place"),
    [("a locked file", "sqlite"), *itertools.product(["a stopped server", "a locked table"], SERVERS)],
)
def test_callers_do_not_wait_for_a_database_that_does_not_answer(
    tmp_path: Path, kind: str, place: str
) -> None:
    with contextlib.ExitStack() as opened:
        url, server = "sqlite", None
        if place != "sqlite":
            server = opened.enter_context(running_server(place))
            url = server.new_database()
        process = opened.enter_context(registrar(tmp_path, KEYLIME_REGISTRAR_DATABASE_URL=url))
        port, tls_port = process.ports()
        administrator = client_context(registrar_authority(), registrar_authority().issue("operator"))
        with contextlib.ExitStack() as meanwhile:
            if server is None:
                meanwhile.enter_context(locked(tmp_path / "reg_data.sqlite"))
            elif kind == "a stopped server":
                server.freeze()
                meanwhile.callback(server.thaw)
            else:
                for table in ("registrations", "pending_registrations"):
                    meanwhile.enter_context(server.holding(url, server.lock_table(table)))
            own = OwnTime(process.pid)
            with connected(tls_port, administrator) as connection:
                connection.sendall(b"DELETE /v2.5/agents/a HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = connection.recv(65536).decode()
            assert "HTTP/1.1 503 " in answer
            assert "Retry-After: 5" in answer
            assert '"outcome":"nothing was done"' in answer
            assert own.passed_s() < 9, "callers are given up long before work of our own"
            with connected(port) as connection:
                deadline = time.monotonic() + 60
                while '"problems":{"database":"' not in ask(connection, "/readyz")[2]:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            process.line("ERROR - not ready: database: ")
            status, took_s = process.stop()
            assert (status, took_s < 5, "Traceback" in process.text) == (0, True, False)


def test_a_server_that_is_silent_at_the_start_does_not_keep_it_from_stopping(tmp_path: Path) -> None:
    with running_postgresql() as postgres, psycopg.connect(postgres.url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", [zlib.crc32(b"keylime_registrar_schema")])
        process = registrar(tmp_path, KEYLIME_REGISTRAR_DATABASE_URL=postgres.url)
        with process:
            process.line("Starting Keylime registrar")
            deadline = time.monotonic() + 60
            waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while not holder.execute(waits).fetchall():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            status, took_s = process.stop()
            assert (status, took_s < 5, "Traceback" in process.text) == (0, True, False)


def run_to_its_end(directory: Path, *arguments: str, **environ: str) -> tuple[int, str]:
    with registrar(directory, *arguments, **environ) as process:
        return process.ended(), process.text


def restore(dump: Path, directory: Path) -> Path:
    database = directory / "reg_data.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(dump.read_text())
    return database


def test_migrating_says_from_where_to_where_and_leaves_a_database_of_today_alone(tmp_path: Path) -> None:
    refused, text = run_to_its_end(tmp_path, KEYLIME_REGISTRAR_AUTO_MIGRATE_DB="False")
    assert refused == 1
    assert "needs a migration" in text.splitlines()[-1]
    assert "run `keylime_registrar --migrate`" in text.splitlines()[-1]
    database = tmp_path / "reg_data.sqlite"
    head = sorted(MIGRATIONS.glob("*.py"))[-1].name
    assert run_to_its_end(tmp_path, "--migrate", KEYLIME_REGISTRAR_AUTO_MIGRATE_DB="False") == (
        0,
        f"database sqlite:///{database} migrated from schema none to {revision_of(head)}\n",
    )
    again = run_to_its_end(tmp_path, "--migrate")
    assert again == (
        0,
        f"database sqlite:///{database} is up to date (schema {revision_of(head)})\n",
    )
    with registrar(tmp_path, KEYLIME_REGISTRAR_AUTO_MIGRATE_DB="False") as process:
        process.ports()


def test_a_database_that_must_not_be_migrated_is_one_line_and_unaltered(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "reg_data.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE registrarmain (agent_id TEXT)")
    status, text = run_to_its_end(tmp_path, "--migrate")
    assert (status, len(text.splitlines())) == (1, 1)
    assert "another implementation" in text
    with closing(sqlite3.connect(tmp_path / "reg_data.sqlite")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("registrarmain",)]


def revision_of(file_name: str) -> str:
    return "r" + file_name[1:5]


@pytest.mark.parametrize("revision", sorted(revision_of(path.name) for path in MIGRATIONS.glob("*.py")))
def test_s12_rows_of_every_released_schema_are_still_served_after_the_upgrade(
    tmp_path: Path, revision: str
) -> None:
    """Each revision needs its dump: made by `sqlite3 reg_data.sqlite .dump` with that release."""
    restore(DUMPS / f"{revision}.sql", tmp_path)
    status, text = run_to_its_end(tmp_path, "--migrate")
    assert status == 0, text
    operator = client_context(registrar_authority(), registrar_authority().issue("operator"))
    with registrar(tmp_path, KEYLIME_REGISTRAR_AUTO_MIGRATE_DB="False") as process:
        _, port = process.ports()
        with connected(port, operator) as connection:
            assert ask(connection, "/v2.5/agents")[2] == (
                '{"code":200,"status":"Success","results":{"uuids":["device","plain"]}}'
            )
            for agent, known in (
                ("plain", '"ip":"10.1.2.3","port":9002'),
                ("device", '"ip":"10.1.2.4","port":9003'),
            ):
                code, _, body = ask(connection, f"/v2.5/agents/{agent}")
                assert (code, known in body, '"regcount":2' in body) == (200, True, agent == "plain")
            code, _, body = ask(connection, "/v2.5/agents/waiting")
            assert (code, "has not been activated" in body) == (404, True)
        assert process.stop()[0] == 0
    assert "Traceback" not in process.text


def test_help_names_migration_and_what_sighup_does(tmp_path: Path) -> None:
    done = run(Order("keylime_registrar", ("--help",), {"PATH": os.environ["PATH"]}))
    assert done.returncode == 0
    assert "--migrate" in done.stdout
    assert "SIGHUP" in done.stdout


@pytest.mark.parametrize("program", ["keylime_registrar", "keylime_verifier"])
def test_an_option_that_is_cut_short_does_nothing(program: str, tmp_path: Path) -> None:
    environ = {"KEYLIME_DIR": str(tmp_path), "PATH": os.environ["PATH"]}
    done = run(Order(program, ("--migrat",), environ))
    assert done.returncode == 2
    assert "unrecognized arguments: --migrat" in done.stderr
    assert not list(tmp_path.iterdir())
