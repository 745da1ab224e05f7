"""The program keylime_verifier as operators meet it: start, stop, restart, and why it does not start."""

import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.fakes.forked_programs import ForkedProcess, Order, run, start

LIMIT_S = 100.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(directory: Path, **options: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KEYLIME_")}
    return {
        **clean,
        "KEYLIME_DIR": str(directory),
        "KEYLIME_CA_PASSWORD": "a password",
        **{f"KEYLIME_VERIFIER_{name}": value for name, value in options.items()},
    }


def run_to_its_end(directory: Path, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    return run(Order("keylime_verifier", arguments, environment(directory, **options)))


@contextmanager
def started(directory: Path, **options: str) -> Iterator[tuple[ForkedProcess, int]]:
    port = free_port()
    order = Order("keylime_verifier", (), environment(directory, PORT=str(port), **options))
    with tempfile.TemporaryFile("w+") as errors:
        process = start(order, stderr=errors.fileno())
        try:
            deadline = time.monotonic() + LIMIT_S
            while ask(port, "/version") is None:
                if process.poll() is not None:
                    errors.seek(0)
                    raise AssertionError(errors.read())
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process, port
        finally:
            process.kill()
            process.wait()


def ask(port: int, path: str, directory: Path | None = None) -> int | None:
    """The status of a GET, with the client certificate that the verifier made for itself; None: no answer."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if directory is not None:
        context.load_verify_locations(directory / "cv_ca/cacert.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(directory / "cv_ca/client-cert.crt", directory / "cv_ca/client-private.pem")
    try:
        url = f"https://127.0.0.1:{port}{path}"
        with urllib.request.urlopen(url, context=context, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


def test_the_first_start_makes_what_is_needed_and_the_second_keeps_it(tmp_path: Path) -> None:
    work_dir = tmp_path / "keylime"
    with started(work_dir) as (process, port):
        assert ask(port, "/v2.5/agents/") == 403
        assert ask(port, "/v2.5/agents/", work_dir) == 200
        status, took_s = process.stop()
        assert (status, took_s < 5) == (0, True)
    made = {path: path.read_bytes() for path in (work_dir / "cv_ca").iterdir()}
    assert {"cacert.crt", "cacrl.der", "server-cert.crt", "client-private.pem"} <= {
        path.name for path in made
    }
    assert {path.stat().st_mode & 0o037 for path in (*made, work_dir / "cv_data.sqlite", work_dir)} == {0}
    with closing(sqlite3.connect(work_dir / "cv_data.sqlite")) as database, database:
        database.execute("INSERT INTO policy_texts VALUES ('a', 'b')")
    with started(work_dir) as (process, port):
        assert ask(port, "/v2.5/agents/", work_dir) == 200
        assert process.stop(signal.SIGINT)[0] == 0
    assert {path: path.read_bytes() for path in (work_dir / "cv_ca").iterdir()} == made
    with closing(sqlite3.connect(work_dir / "cv_data.sqlite")) as database:
        assert database.execute("SELECT * FROM policy_texts").fetchall() == [("a", "b")]


def test_a_stop_does_not_wait_for_a_peer_that_keeps_its_connection(tmp_path: Path) -> None:
    with started(tmp_path) as (process, port), socket.create_connection(("127.0.0.1", port)) as half_open:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain) as secure,
        ):
            secure.sendall(b"POST /v2.5/agents/a HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
            status, took_s = process.stop()
            assert (status, took_s < 5) == (0, True)
        assert half_open.fileno() >= 0


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line on standard error that says all of `words`, and exit status 1."""
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("keylime_verifier: error: ")
    for word in words:
        assert word in lines[0]


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(run_to_its_end(tmp_path, PORT=port), port, "in use")


def test_a_zeromq_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = {
            "PORT": "0",
            "REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": "['zeromq']",
            "REVOCATIONS_ZMQ_PORT": str(taken.getsockname()[1]),
        }
        refused(run_to_its_end(tmp_path, **options), "zmq_port")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"PORT": "many"}, ("PORT", "many")),
        ({"QUOTE_INTERVAL": "-1"}, ("QUOTE_INTERVAL", "-1")),
        ({"DATABASE_URL": "oracle://x"}, ("database_url", "oracle")),
        ({"SEVERITY_LABELS": "[]"}, ("severity_labels",)),
        ({"SEVERITY_POLICY": '[{"event_id": "(", "severity_label": "info"}]'}, ("severity_policy", "rule 1")),
        ({"TLS_DIR": "nowhere"}, ("nowhere",)),
        ({"REVOCATIONS_ENABLED_REVOCATION_NOTIFICATIONS": "['pigeon']"}, ("pigeon",)),
        ({"DATABASE_URL": "sqlite:////proc/none/cv.sqlite"}, ("/proc/none",)),
    ],
    ids=["port", "interval", "driver", "labels", "severities", "tls_dir", "channel", "database"],
)
def test_a_wrong_option_is_one_line(tmp_path: Path, options: dict[str, str], words: tuple[str, ...]) -> None:
    refused(run_to_its_end(tmp_path, **{"PORT": "0", **options}), *words)


def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    with started(tmp_path) as (process, _port):
        assert process.stop()[0] == 0
    key = tmp_path / "cv_ca" / "server-private.pem"
    key.write_text("damaged")
    refused(run_to_its_end(tmp_path, PORT="0"), str(key))


def test_a_working_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run_to_its_end(tmp_path / "file" / "keylime", PORT="0"), "file/keylime")


def test_a_database_of_another_implementation_is_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "cv_data.sqlite")) as database, database:
        database.execute("CREATE TABLE verifiermain (agent_id TEXT)")
    before = (tmp_path / "cv_data.sqlite").read_bytes()
    refused(run_to_its_end(tmp_path, PORT="0"), "another implementation")
    with closing(sqlite3.connect(tmp_path / "cv_data.sqlite")) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("verifiermain",)]
    assert len((tmp_path / "cv_data.sqlite").read_bytes()) == len(before)


def test_help_and_unknown_arguments(tmp_path: Path) -> None:
    done = run_to_its_end(tmp_path, "--help")
    assert (done.returncode, "verifier.conf" in done.stdout) == (0, True)
    assert run_to_its_end(tmp_path, "--no-such-flag").returncode == 2
