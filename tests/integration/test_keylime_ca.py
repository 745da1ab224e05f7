"""The program keylime_ca: an authority from its making to a revocation list that other programs check."""

import os
import shutil
import socket
import stat
import subprocess
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import zmq
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from keylime.messages.revocation import RevocationMessage, SignedRevocation
from keylime.pki.authority import Authority
from keylime.pki.certificates import PrivateKey, parse_private_key
from keylime.pki.issuance import revocation_list
from keylime.pki.keystore import unseal
from keylime.pki.roles import ADMINISTRATOR
from keylime.pki.service_certificates import ensure_service_certificates
from keylime.revocation.signing import sign_revocation
from tests.fakes.forked_programs import ForkedProcess, Order, run, start

LIMIT_S = 100.0
OPENSSL = "/usr/bin/openssl"


def environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "KEYLIME_DIR": str(home), "KEYLIME_CA_PASSWORD": "a password"}


def keylime_ca(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return run(Order("keylime_ca", arguments, {**environment(home), **more}))


def openssl_verify(ca: Path, name: str) -> subprocess.CompletedProcess[str]:
    """What another implementation says about the certificate of `name`, with the revocation list."""
    command: list[str | Path] = [
        OPENSSL,
        "verify",
        "-x509_strict",
        "-crl_check",
        "-CAfile",
        ca / "cacert.crt",
    ]
    command += ["-CRLfile", ca / "cacrl.pem", ca / f"{name}-cert.crt"]
    return subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_life_of_an_authority_as_other_programs_see_it(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    assert keylime_ca(tmp_path, "-c", "init").stdout == f"CA certificate created successfully in {ca}\n"
    for name in ("node1", "node2"):
        done = keylime_ca(tmp_path, "-c", "create", "-n", name)
        assert (done.returncode, done.stderr) == (0, "")
        assert openssl_verify(ca, name).returncode == 0
    files = {"cacert.crt", "ca-public.pem", "cacrl.der", "cacrl.pem", "private.yml"}
    files |= {
        f"{name}-{end}" for name in ("node1", "node2") for end in ("cert.crt", "private.pem", "public.pem")
    }
    assert {path.name for path in ca.iterdir()} == files
    assert {mode_of(path) for path in ca.iterdir()} == {0o640}

    for flags in ((), ("-i",)):
        done = keylime_ca(tmp_path, "-c", "pkg", "-n", "node1", *flags)
        assert done.stdout == "Creating cert package for node1 in node1-pkg.zip\n"
    assert mode_of(ca / "node1-pkg.zip") == 0o600
    with zipfile.ZipFile(ca / "node1-pkg.zip") as package:
        assert {member.compress_type for member in package.infolist()} == {zipfile.ZIP_STORED}
        key = load_pem_private_key(package.read("node1-private.pem"), None)
        certificate = x509.load_pem_x509_certificate(package.read("node1-cert.crt"))
        assert certificate.public_key() == key.public_key()
        assert package.read("cacert.crt") == (ca / "cacert.crt").read_bytes()

    assert keylime_ca(tmp_path, "-c", "revoke", "-n", "node1").returncode == 0
    assert "certificate revoked" in openssl_verify(ca, "node1").stderr
    assert openssl_verify(ca, "node2").returncode == 0


def usages(ca: Path, name: str) -> set[str]:
    certificate = x509.load_pem_x509_certificate((ca / f"{name}-cert.crt").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return {usage.dotted_string for usage in found}


def test_n3_where_daemons_are_served_there_are_administrators_and_no_machines(tmp_path: Path) -> None:
    cv_ca = tmp_path / "cv_ca"
    ensure_service_certificates(cv_ca, "a password", server_sans=("localhost",), client=True)
    for command in ("create", "pkg"):
        done = keylime_ca(tmp_path, "-c", command, "-n", "node1", "-d", str(cv_ca))
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"keylime_ca: error: the CA in {cv_ca} serves daemons")
        assert "use another directory" in last
    assert not list(cv_ca.glob("node1*"))
    for name, role in (("alice", ("--role", "administrator")), ("client", ())):
        assert keylime_ca(tmp_path, "-c", "create", "-n", name, "-d", str(cv_ca), *role).returncode == 0
        assert openssl_verify(cv_ca, name).returncode == 0
        assert usages(cv_ca, name) == {"1.3.6.1.5.5.7.3.2", ADMINISTRATOR.dotted_string}
        assert keylime_ca(tmp_path, "-c", "revoke", "-n", name, "-d", str(cv_ca)).returncode == 0
        assert "certificate revoked" in openssl_verify(cv_ca, name).stderr


def chains(name: str, directory: Path, trusted: Path) -> bool:
    """Whether another implementation takes the certificate of `name` for one of a trusted authority."""
    command = [
        OPENSSL,
        "verify",
        "-x509_strict",
        "-CAfile",
        str(trusted),
        str(directory / f"{name}-cert.crt"),
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603


def test_an_authority_is_rolled_over_in_steps_that_strand_nobody(tmp_path: Path) -> None:
    cv_ca = tmp_path / "cv_ca"
    ensure_service_certificates(cv_ca, "a password", server_sans=("localhost",), client=True)

    def ca(*arguments: str) -> str:
        done = keylime_ca(tmp_path, "-c", *arguments, "-d", str(cv_ca))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def copy(name: str) -> Path:
        return Path(shutil.copy(cv_ca / "cacert.crt", tmp_path / name))

    listed = ca("list").splitlines()
    assert [line.split()[0] for line in listed] == ["NAME", "ca", "client", "server"]
    assert all(line.split()[3] in ("364", "3649") and "good" in line for line in listed[1:])
    assert ca("renew").startswith("Nothing in ")
    before = (cv_ca / "client-cert.crt").read_bytes()
    assert ca("renew", "-n", "client").startswith("Renewed the certificate of client, until ")
    assert (cv_ca / "client-cert.crt").read_bytes() != before

    old = copy("old.crt")
    assert "roll --switch" in ca("roll")
    both = copy("both.crt")
    assert both.read_text().count("BEGIN CERTIFICATE") == 2
    assert all(chains("client", cv_ca, trusted) for trusted in (old, both))  # whoever has which
    shutil.copytree(cv_ca, tmp_path / "before")
    assert "renewed by it: client, server" in ca("roll", "--switch")
    assert chains("client", cv_ca, both)
    assert not chains("client", cv_ca, old)
    assert chains("client", tmp_path / "before", cv_ca / "cacert.crt")  # one that was not renewed yet
    assert ca("list").count("also trusted") == 1
    assert "Dropped 1 former CA" in ca("roll", "--drop")
    new = copy("new.crt")
    assert chains("client", cv_ca, new)
    assert chains("server", cv_ca, new)
    assert not chains("client", tmp_path / "before", new)

    done = keylime_ca(tmp_path, "-c", "roll", "--switch", "-d", str(cv_ca))
    assert done.returncode == 1
    assert "there is no next CA" in done.stderr
    assert "the next step is `keylime_ca -c roll -d " in done.stderr


def test_the_role_is_one_of_three(tmp_path: Path) -> None:
    done = keylime_ca(tmp_path, "-c", "create", "-n", "x", "--role", "god")
    assert (done.returncode, "invalid choice: 'god'" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("password", "reason"), [("wrong", "private.yml"), ("", "password"), ("default", "private.yml")]
)
def test_without_the_password_nothing_is_done_and_one_line_says_why(
    tmp_path: Path, password: str, reason: str
) -> None:
    keylime_ca(tmp_path, "-c", "init")
    before = {path: path.read_bytes() for path in (tmp_path / "ca").iterdir()}
    for arguments in (("create", "-n", "x"), ("pkg", "-n", "x"), ("listen",)):
        done = keylime_ca(tmp_path, "-c", *arguments, KEYLIME_CA_PASSWORD=password)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("keylime_ca: error: ")
        assert reason in line
    assert {path: path.read_bytes() for path in (tmp_path / "ca").iterdir()} == before


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Listening:
    """A running `keylime_ca -c listen`, and the publisher that it listens to."""

    def __init__(self, home: Path, publisher: zmq.Socket[bytes], port: int) -> None:
        self.home = home
        self.ca = home / "ca"
        self.port = port
        self.publisher = publisher
        self.lines: list[str] = []

    def until(self, question: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not question():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.01)

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def crl(self) -> x509.CertificateRevocationList:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/crl", timeout=10) as answer:
            assert answer.headers["Content-Type"] == "application/pkix-crl"
            return x509.load_der_x509_crl(answer.read())

    def revoked(self) -> set[int]:
        return {entry.serial_number for entry in self.crl()}

    def publish(self, signed: SignedRevocation) -> None:
        self.publisher.send(msgspec.json.encode(signed))

    def serial(self, name: str) -> int:
        return x509.load_pem_x509_certificate((self.ca / f"{name}-cert.crt").read_bytes()).serial_number

    def message(
        self, meta_data: str, *, kind: str = "revocation", key: str = "RevocationNotifier"
    ) -> SignedRevocation:
        message = RevocationMessage(
            type=kind,
            ip="192.0.2.7",
            agent_id="node1",
            port=9002,
            tpm_policy="{}",
            meta_data=meta_data,
            event_time="Sun Nov 22 18:05:08 2026",
            event_id="ima.validation.ima-ng.not_in_allowlist",
            severity_label="emergency",
            context="{}",
        )
        return sign_revocation(message, (self.ca / f"{key}-private.pem").read_text())


@contextmanager
def listening(home: Path, *arguments: str) -> Iterator[tuple[Listening, ForkedProcess]]:
    """A CA with a notifier and two machines, and the program at work."""
    context = zmq.Context[zmq.Socket[bytes]]()
    publisher = context.socket(zmq.XPUB)
    zmq_port = publisher.bind_to_random_port("tcp://127.0.0.1")
    port = free_port()
    words = ("-c", "listen", "--zmq-port", str(zmq_port), "--crl-port", str(port), *arguments)
    output, written = os.pipe()
    process = start(Order("keylime_ca", words, environment(home)), stdout=written, stderr=written)
    os.close(written)
    scene = Listening(home, publisher, port)
    reader = threading.Thread(target=_read, args=(output, scene.lines))
    reader.start()
    try:
        assert publisher.poll(int(LIMIT_S * 1000)), "nobody subscribed"
        yield scene, process
    finally:
        process.kill()
        process.wait()
        reader.join()
        publisher.close(0)
        context.term()


def _read(output: int, lines: list[str]) -> None:
    with os.fdopen(output) as file:
        for line in file:
            lines.append(line.rstrip())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    authority = Authority.create(tmp_path / "ca", "a password")
    for name in ("RevocationNotifier", "node1", "node2"):
        authority.issue(name)
    return tmp_path


def test_a_genuine_message_puts_the_serial_on_the_list_that_is_served(home: Path) -> None:
    with listening(home) as (here, process):
        node1 = here.serial("node1")
        assert here.revoked() == set()
        here.publish(here.message(f'{{"cert_serial": {node1}, "subject": "CN=node1"}}'))
        here.until(lambda: here.said(f"certificate {node1} is revoked"))  # after both forms of the list
        assert here.revoked() == {node1}
        assert "certificate revoked" in openssl_verify(here.ca, "node1").stderr
        assert openssl_verify(here.ca, "node2").returncode == 0
        number = here.crl().extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for _ in range(3):  # a replay is no news
            here.publish(here.message(f'{{"cert_serial": {node1}}}'))
        here.publish(here.message(f'{{"cert_serial": {here.serial("node2")}}}'))
        here.until(lambda: here.revoked() == {node1, here.serial("node2")})
        now = here.crl().extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        assert now == number + 1
        status, took_s = process.stop()
        assert (status, took_s < 5) == (0, True)


def test_forgeries_silence_and_senseless_serials_revoke_nothing(home: Path) -> None:
    with listening(home) as (here, _):
        node1, node2 = here.serial("node1"), here.serial("node2")
        genuine = here.message(f'{{"cert_serial": {node1}}}')
        forged = [
            SignedRevocation(genuine.msg, ""),
            SignedRevocation(genuine.msg.replace("node1", "node3"), genuine.signature),
            here.message(f'{{"cert_serial": {node1}}}', key="node1"),
            here.message(f'{{"cert_serial": {node1}}}', kind="comm_error"),
            here.message(f'{{"cert_serial": {here.serial("RevocationNotifier")}}}'),
            *(
                here.message(text)
                for text in ("{}", "[]", "no JSON", '{"cert_serial": 1}', '{"cert_serial": -2}')
            ),
            here.message('{"cert_serial": "2"}'),
            here.message(f'{{"cert_serial": {1 << 159}}}'),
        ]
        for garbage in (b"", b"\xff", b"{}", b"[" * 5000):
            here.publisher.send(garbage)
        for signed in forged:
            here.publish(signed)
        here.publish(here.message(f'{{"cert_serial": {node2}}}'))
        here.until(lambda: here.revoked() == {node2})


@pytest.mark.parametrize("by_path", [False, True], ids=["name", "path"])
def test_n_names_the_certificate_that_verifies_messages(home: Path, by_path: bool) -> None:
    certificate = str(home / "ca" / "node2-cert.crt") if by_path else "node2"
    with listening(home, "-n", certificate) as (here, _):
        here.publish(here.message('{"cert_serial": 77}'))
        here.publish(here.message('{"cert_serial": 78}', key="node2"))
        here.until(lambda: here.revoked() == {78})


def test_a_list_that_is_growing_old_is_signed_anew_and_keeps_its_entries(home: Path) -> None:
    ca = home / "ca"
    Authority.open(ca, "a password").revoke("node1")
    then = datetime.now(UTC) - timedelta(days=300)
    ca_key = _ca_key(ca)
    certificate = x509.load_pem_x509_certificate((ca / "cacert.crt").read_bytes())
    serial = x509.load_pem_x509_certificate((ca / "node1-cert.crt").read_bytes()).serial_number
    old = revocation_list([serial], certificate, ca_key, previous=None, lifetime_days=301, now=then)
    (ca / "cacrl.der").write_bytes(old.public_bytes(Encoding.DER))
    with listening(home) as (here, _):
        crl = here.crl()
        assert crl.next_update_utc is not None
        assert crl.next_update_utc > datetime.now(UTC) + timedelta(days=100)
        assert here.revoked() == {serial}


def _ca_key(ca: Path) -> PrivateKey:
    return parse_private_key(unseal((ca / "private.yml").read_bytes(), "a password").ca_key, None)


def test_only_the_list_is_served_and_what_another_program_writes_at_once(home: Path) -> None:
    with listening(home) as (here, _):
        for path in ("/", "/crl/../private.yml", "/private.yml", "/ca/private.yml", "//crl", "/crl%2f"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"http://127.0.0.1:{here.port}{path}", timeout=10)
            assert caught.value.code in (400, 404)
            caught.value.close()
        assert keylime_ca(home, "-c", "revoke", "-n", "node2").returncode == 0
        assert here.revoked() == {here.serial("node2")}
        # The next message does not undo that.
        here.publish(here.message(f'{{"cert_serial": {here.serial("node1")}}}'))
        here.until(lambda: here.revoked() == {here.serial("node1"), here.serial("node2")})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-n", "nobody"), "nobody-cert.crt"),
        (("--crl-ip", "203.0.113.1"), "cannot listen on 203.0.113.1"),
        (("--zmq-ip", "no such host"), "revocations cannot be received from"),
    ],
)
def test_what_listen_cannot_start_with_is_one_line(
    home: Path, arguments: tuple[str, ...], reason: str
) -> None:
    done = keylime_ca(home, "-c", "listen", "--crl-port", str(free_port()), *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("keylime_ca: error: ")
    assert reason in line
