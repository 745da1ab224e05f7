"""Real handshakes on 127.0.0.1 between the contexts of servers and clients."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from keylime.errors import ConfigError
from keylime.identifiers import AgentId
from keylime.pki.agent_certificate import key_pin, read_agent_certificate
from keylime.pki.agent_identity import load_or_create_identity
from keylime.pki.authority import Authority
from keylime.pki.issuance import CertificateSubject, Usage
from keylime.pki.service_certificates import ensure_service_certificates
from keylime.pki.tls import (
    TlsFiles,
    TlsSide,
    client_context,
    pinned_client_context,
    server_context,
)
from tests.fakes.loopback import served_by


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two unrelated CAs, `cv_ca` and `other`, with server and client pairs; tests do not change them."""
    root = tmp_path_factory.mktemp("tls")
    for name in ("cv_ca", "other"):
        ensure_service_certificates(root / name, "pw", server_sans=("localhost",), client=True)
    ca = Authority.open(root / "cv_ca", "pw", CertificateSubject(lifetime_days=0))
    ca.issue("expired", usage=Usage.CLIENT)
    return root


def server(root: Path, *, require_client: bool = True, ca: str = "cv_ca") -> ssl.SSLContext:
    directory = root / "cv_ca"
    return server_context(
        certificate=directory / "server-cert.crt",
        key=directory / "server-private.pem",
        client_ca=[root / ca / "cacert.crt"],
        require_client=require_client,
    )


def client(
    root: Path, pair: str | None = "client", *, ca: str = "cv_ca", trust: str = "cv_ca"
) -> ssl.SSLContext:
    directory = root / ca
    return client_context(
        certificate=directory / f"{pair}-cert.crt" if pair else None,
        key=directory / f"{pair}-private.pem" if pair else None,
        trusted=[root / trust / "cacert.crt"],
    )


async def _exchange(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> tuple[str | None, bytes]:
    seen: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peercert")
        subject = dict(pair for part in peer["subject"] for pair in part) if peer else {}
        seen.set_result(subject.get("commonName"))
        writer.write(b"hello")
        writer.close()

    async with served_by(serve, tls=server_tls) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.number, ssl=client_tls)
        try:
            certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            # With TLS 1.3 a refused client certificate shows only when the client reads.
            if await reader.read() != b"hello":
                raise ConnectionError("closed without an answer")
            return await seen, certificate
        finally:
            writer.transport.abort()


def exchange(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> tuple[str | None, bytes]:
    """The client's CN as the server sees it, and the server's certificate as the client sees it (DER)."""

    async def quietly() -> tuple[str | None, bytes]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        return await asyncio.wait_for(_exchange(server_tls, client_tls), 20)

    return asyncio.run(quietly())


def test_services_of_one_authority_know_each_other(authorities: Path) -> None:
    name, certificate = exchange(server(authorities), client(authorities))
    assert name == "client"
    pem = (authorities / "cv_ca" / "server-cert.crt").read_text()
    assert ssl.PEM_cert_to_DER_cert(pem) == certificate


@pytest.mark.parametrize(
    ("pair", "ca"),
    [(None, "cv_ca"), ("client", "other"), ("server", "cv_ca"), ("expired", "cv_ca")],
    ids=["none", "of another authority", "a server's", "expired"],
)
def test_a_client_without_a_proper_certificate_is_refused(
    authorities: Path, pair: str | None, ca: str
) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - ssl.SSLError or a reset, as the timing has it
        exchange(server(authorities), client(authorities, pair, ca=ca))


def test_where_certificates_are_optional_a_client_without_one_is_anonymous(authorities: Path) -> None:
    optional = server(authorities, require_client=False)
    assert exchange(optional, client(authorities, None))[0] is None
    assert exchange(optional, client(authorities))[0] == "client"


def test_where_certificates_are_optional_a_wrong_one_is_still_refused(authorities: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011
        exchange(server(authorities, require_client=False), client(authorities, ca="other"))


def test_a_client_refuses_a_server_of_another_authority(authorities: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        exchange(server(authorities), client(authorities, trust="other"))


def test_a_client_refuses_a_client_certificate_as_server(authorities: Path) -> None:
    directory = authorities / "cv_ca"
    wrong = server_context(
        certificate=directory / "client-cert.crt",
        key=directory / "client-private.pem",
        client_ca=[directory / "cacert.crt"],
        require_client=True,
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        exchange(wrong, client(authorities))


def test_the_systems_authorities_are_not_trusted(authorities: Path) -> None:
    context = client(authorities)
    assert context.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}


def test_a_client_that_trusts_no_authority_connects_to_nobody(authorities: Path) -> None:
    lonely = client_context(certificate=None, key=None, trusted=[])
    with pytest.raises(ssl.SSLCertVerificationError):
        exchange(server(authorities, require_client=False), lonely)


def test_an_agent_is_known_by_its_pin(authorities: Path, tmp_path: Path) -> None:
    identity = load_or_create_identity(tmp_path / "a.crt", tmp_path / "a.pem", agent=AgentId("node1"))
    agent = server_context(
        certificate=identity.certificate,
        key=identity.key,
        client_ca=[authorities / "cv_ca" / "cacert.crt"],
        require_client=True,
    )
    pair = authorities / "cv_ca"
    context = pinned_client_context(certificate=pair / "client-cert.crt", key=pair / "client-private.pem")
    name, der = exchange(agent, context)
    assert name == "client"
    assert key_pin(identity.certificate_pem) == read_agent_certificate(der).key_pin
    # Peers that put the certificate into their trust list instead reach the agent as well.
    trusting = client_context(
        certificate=pair / "client-cert.crt", key=pair / "client-private.pem", trusted=[identity.certificate]
    )
    assert exchange(agent, trusting)[0] == "client"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_is_refused(authorities: Path, version: ssl.TLSVersion) -> None:
    old = client(authorities)
    old.minimum_version = old.maximum_version = version
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(OSError):  # noqa: PT011
        exchange(server(authorities), old)


def test_tls_1_2_needs_forward_secrecy(authorities: Path) -> None:
    weak = client(authorities)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    assert exchange(server(authorities), weak)[0] == "client"
    weak.set_ciphers("AES128-GCM-SHA256:ECDHE-RSA-AES128-SHA256")
    with pytest.raises(OSError):  # noqa: PT011
        exchange(server(authorities), weak)


def copy(authorities: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(authorities / "cv_ca", tmp_path / "cv_ca"))


def side(directory: Path) -> TlsSide:
    return TlsSide(
        certificate=directory / "server-cert.crt",
        key=directory / "server-private.pem",
        key_password=None,
        trusted=(directory / "cacert.crt",),
        verify_peer=True,
        label="[verifier] server_cert, server_key",
        trust_label="[verifier] trusted_client_ca",
    )


def listen(chosen: TlsSide) -> ssl.SSLContext:
    return TlsFiles(Path("/"), False, chosen, None, ()).server_context(require_client=True)


def test_resolved_files_make_a_context(authorities: Path) -> None:
    context = listen(side(authorities / "cv_ca"))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert exchange(context, client(authorities))[0] == "client"


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n", None])
def test_an_unusable_trust_file_stops_with_option_and_path(
    authorities: Path, tmp_path: Path, content: bytes | None
) -> None:
    directory = copy(authorities, tmp_path)
    (directory / "cacert.crt").unlink()
    if content is not None:
        (directory / "cacert.crt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"\[verifier\] trusted_client_ca: .*/cv_ca/cacert\.crt"):
        listen(side(directory))


def test_a_key_open_to_all_users_stops_with_the_remedy(authorities: Path, tmp_path: Path) -> None:
    directory = copy(authorities, tmp_path)
    (directory / "server-private.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"server_key: .*mode 0644.*chmod 0600"):
        listen(side(directory))


def test_a_certificate_with_the_key_of_another_stops_with_both_paths(
    authorities: Path, tmp_path: Path
) -> None:
    directory = copy(authorities, tmp_path)
    wrong = replace(side(directory), key=directory / "client-private.pem")
    with pytest.raises(ConfigError, match=r"server-cert\.crt does not belong to key .*client-private\.pem"):
        listen(wrong)


def test_an_encrypted_key_needs_its_password_and_never_asks_for_it(tmp_path: Path) -> None:
    directory = tmp_path / "cv_ca"
    ensure_service_certificates(
        directory,
        "pw",
        server_sans=("localhost",),
        client=False,
        server_key_password="blue",  # noqa: S106 - a test password
    )
    listen(replace(side(directory), key_password="blue"))  # noqa: S106 - a test password
    for wrong in (None, "red"):
        with pytest.raises(ConfigError, match=r"server-private\.pem: .*password"):
            listen(replace(side(directory), key_password=wrong))


def test_a_certificate_without_its_key_is_a_mistake(authorities: Path) -> None:
    with pytest.raises(ConfigError, match="needs its key"):
        client_context(certificate=authorities / "cv_ca" / "client-cert.crt", key=None, trusted=[])


def test_plain_http_on_the_tls_port_gets_no_answer(authorities: Path) -> None:
    async def talk() -> bytes:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with served_by(lambda *_: None, tls=server(authorities)) as port:
            return await asyncio.to_thread(plain, port.number)

    def plain(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET /version HTTP/1.0\r\n\r\n")
            try:
                return connection.recv(100)
            except ConnectionResetError:
                return b""

    assert b"HTTP" not in asyncio.run(talk())


def test_a_node_certificate_of_another_authority_is_no_administrator(authorities: Path) -> None:
    Authority.create(authorities / "payload_ca", "pw").issue("node7")
    with pytest.raises(OSError):  # noqa: PT011
        exchange(server(authorities), client(authorities, "node7", ca="payload_ca"))


def test_n3_markers_disturb_no_handshake(authorities: Path) -> None:
    """OpenSSL takes usages that it does not know for what they are: more than it was asked about."""
    payload = authorities / "marked"
    Authority.create(payload, "pw").issue("node8")
    machine = server_context(
        certificate=payload / "node8-cert.crt",
        key=payload / "node8-private.pem",
        client_ca=[payload / "cacert.crt"],
        require_client=True,
    )
    assert exchange(machine, client(authorities, "node8", ca="marked", trust="marked"))[0] == "node8"
    assert exchange(server(authorities), client(authorities))[0] == "client"
    for purpose in ("sslclient", "sslserver"):
        command: list[str | Path] = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile"]
        command += [payload / "cacert.crt", payload / "node8-cert.crt"]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603


def test_n3_a_daemon_does_not_start_with_a_machines_certificate(authorities: Path, tmp_path: Path) -> None:
    directory = tmp_path / "mixed"
    Authority.create(directory, "pw").issue("node9")
    machine = replace(
        side(directory),
        certificate=directory / "node9-cert.crt",
        key=directory / "node9-private.pem",
    )
    with pytest.raises(ConfigError, match=r"server_key: .*node9-cert\.crt was made for a machine.*--role"):
        listen(machine)
