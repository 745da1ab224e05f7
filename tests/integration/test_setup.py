"""`keylime-setup` up to the services: files, certificates and questions; machines are in tests/machines."""

import argparse
import io
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from keylime.errors import ConfigError
from keylime.setup.authority import fingerprint
from keylime.setup.host import Host
from keylime.setup.network import demand_answer, own_address_towards, presented_authority
from keylime.setup.program import set_up_control, set_up_node
from tests.lab.site import reserve_subnet

CA = trustme.CA()
AUTHORITY = x509.load_pem_x509_certificate(CA.cert_pem.bytes())


@contextmanager
def listening(address: str, port: int) -> Iterator[socket.socket]:
    """Somebody who accepts connections and says nothing."""
    with socket.create_server((address, port)) as server:
        yield server


@contextmanager
def tls_server(address: str, port: int, *, sends_authority: bool = True) -> Iterator[None]:
    """A server that presents a certificate of CA, as the verifier does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf = CA.issue_cert(address)
    leaf.configure_cert(context)
    if sends_authority:
        CA.configure_trust(context)  # from which OpenSSL completes the chain
    ended = threading.Event()

    def serve(server: socket.socket) -> None:
        server.settimeout(0.1)
        while not ended.is_set():
            try:
                connection, _ = server.accept()
                connection.settimeout(30)
                with connection, context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(1)
            except OSError:
                continue

    with listening(address, port) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.fixture
def address() -> Iterator[str]:
    """One that nobody else uses, where the ports of all services are free."""
    with reserve_subnet() as subnet:
        yield f"{subnet}.0.1"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A machine of its own, whose programs find their configuration good; services are left alone."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("keylime_agent", "keylime_verifier", "keylime_registrar"):
        (programs / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/calls\necho "warning: strange"\n'
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name in ("etc", "work"):
        (tmp_path / name).mkdir(mode=0o700)
    return Host(tmp_path / "etc", tmp_path / "usr", tmp_path / "work")


def node_arguments(address: str, **given: object) -> argparse.Namespace:
    defaults = {"control": address, "registrar": None, "address": None, "uuid": None, "fingerprint": None}
    return argparse.Namespace(**{**defaults, "ca": None, "listen": None, "no_start": True, **given})


def test_the_authority_is_learnt_from_the_server_and_only_with_it(address: str) -> None:
    with tls_server(address, 8881):
        leaf, authority = presented_authority(address, 8881)
    assert authority == AUTHORITY
    assert leaf != authority
    with (
        tls_server(address, 8882, sends_authority=False),
        pytest.raises(ConfigError, match="name the file with --ca"),
    ):
        presented_authority(address, 8882)
    with pytest.raises(ConfigError, match="no TLS server answers"):
        presented_authority(address, 8883)


def test_a_name_that_nobody_has_is_said_to_be_that_and_not_a_matter_of_our_address(host: Host) -> None:
    with pytest.raises(ConfigError) as refused:
        set_up_node(node_arguments("192.0.2.300"), host)
    assert str(refused.value).startswith("192.0.2.300 is neither an address nor a name that is known here: ")
    assert "--address" not in str(refused.value)


def test_a_node_is_set_up_and_the_second_time_nothing_is_asked(
    address: str, host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tls_server(address, 8881), listening(address, 8890):
        set_up_node(node_arguments(address, fingerprint=fingerprint(AUTHORITY).lower()), host)
        first = host.settings("agent").text("uuid")
        set_up_node(node_arguments(address), host)
    settings = host.settings("agent")
    assert settings.text("uuid") == first != "generate"
    assert settings.text("registrar_ip") == address
    assert settings.text("contact_ip") == own_address_towards(address)
    assert x509.load_pem_x509_certificate(host.authority_file.read_bytes()) == AUTHORITY
    assert (tmp_path / "calls").read_text() == "keylime_agent --check-config\n" * 2
    told = capsys.readouterr().out
    assert "keylime_agent: warning: strange" in told
    assert f"keylime_tenant -u {first} -c add" in told


@pytest.mark.parametrize("given", [{"fingerprint": "AB" * 32}, {}])
def test_an_authority_that_nobody_vouches_for_changes_nothing(
    address: str, host: Host, given: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with (
        tls_server(address, 8881),
        listening(address, 8890),
        pytest.raises(ConfigError, match="--fingerprint"),
    ):
        set_up_node(node_arguments(address, **given), host)
    assert not host.authority_file.exists()
    assert list(host.etc.iterdir()) == []


def test_a_fingerprint_counts_also_where_the_authority_is_trusted_already(address: str, host: Host) -> None:
    with tls_server(address, 8881), listening(address, 8890):
        set_up_node(node_arguments(address, fingerprint=fingerprint(AUTHORITY)), host)
        with pytest.raises(ConfigError, match=f"--fingerprint is not .*{fingerprint(AUTHORITY)}"):
            set_up_node(node_arguments(address, fingerprint="AB" * 32), host)


def test_another_authority_is_never_replaced(address: str, host: Host) -> None:
    host.authority_file.parent.mkdir()
    other = trustme.CA().cert_pem.bytes()
    host.authority_file.write_bytes(other)
    with (
        tls_server(address, 8881),
        listening(address, 8890),
        pytest.raises(ConfigError, match="is another authority"),
    ):
        set_up_node(node_arguments(address, fingerprint=fingerprint(AUTHORITY)), host)
    assert host.authority_file.read_bytes() == other


def test_a_copied_authority_needs_no_verifier(address: str, host: Host, tmp_path: Path) -> None:
    copied = tmp_path / "cacert.crt"
    copied.write_bytes(CA.cert_pem.bytes())
    leaf = tmp_path / "leaf.crt"
    leaf.write_bytes(CA.issue_cert("a.example").cert_chain_pems[0].bytes())
    with listening(address, 8890):
        for path, problem in ((leaf, "no self-signed certificate"), (tmp_path / "none", "No such file")):
            with pytest.raises(ConfigError, match=problem):
                set_up_node(node_arguments(address, ca=path), host)
        set_up_node(node_arguments(address, ca=copied), host)
    assert x509.load_pem_x509_certificate(host.authority_file.read_bytes()) == AUTHORITY


def damage(path: Path, kind: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\x00garbage\n" if kind == "garbage" else b"")
        path.chmod(0o600)


@pytest.mark.parametrize("kind", ["garbage", "loop", "directory", "empty"])
@pytest.mark.parametrize("place", ["copy", "authority", "agent.conf", "snippet"])
def test_a_file_that_cannot_be_used_is_named(
    address: str, host: Host, tmp_path: Path, place: str, kind: str
) -> None:
    """An empty configuration says nothing, a folder is none; all else is told in one line."""
    copied = tmp_path / "cacert.crt"
    paths = {
        "copy": copied,
        "authority": host.authority_file,
        "agent.conf": host.etc / "agent.conf",
        "snippet": host.etc / "agent.conf.d" / "90-site.conf",
    }
    damage(paths[place], kind)
    if place != "copy":
        copied.write_bytes(CA.cert_pem.bytes())
    with listening(address, 8890):
        if kind in ("empty", "directory") and place in ("agent.conf", "snippet"):
            set_up_node(node_arguments(address, ca=copied), host)
            return
        with pytest.raises(ConfigError) as told:
            set_up_node(node_arguments(address, ca=copied), host)
    assert str(paths[place]) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_registrar_that_is_not_there_is_told_before_anything_is_asked(address: str, host: Host) -> None:
    with pytest.raises(ConfigError, match=r"nobody answers at .*:8890 .*firewall"):
        set_up_node(node_arguments(address), host)
    assert list(host.etc.iterdir()) == []


def test_a_file_that_contradicts_is_named(address: str, host: Host) -> None:
    directory = host.etc / "registrar.conf.d"
    directory.mkdir(mode=0o700)
    (directory / "zz.conf").write_text("[registrar]\nip = 127.0.0.1\n")
    (directory / "zz.conf").chmod(0o600)
    arguments = argparse.Namespace(address=[address], listen=None, no_start=True)
    with pytest.raises(ConfigError, match=r"zz\.conf, line 2 sets \[registrar\] ip"):
        set_up_control(arguments, host)
    (directory / "zz.conf").unlink()
    set_up_control(arguments, host)
    assert host.settings("verifier").items("cert_subject_alternative_names") == (address,)


@pytest.mark.parametrize("sends_authority", [True, False])
def test_control_ends_with_the_command_for_nodes(
    address: str, host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str], sends_authority: bool
) -> None:
    (tmp_path / "bin/systemctl").write_text(f'#!/bin/sh\necho "systemctl $*" >>{tmp_path}/calls\n')
    (tmp_path / "bin/systemctl").chmod(0o755)
    with (
        tls_server(address, 8881, sends_authority=sends_authority),
        listening(address, 8890),
        listening(address, 8891),
    ):
        set_up_control(argparse.Namespace(address=[address], listen=None, no_start=False), host)
    called = (tmp_path / "calls").read_text()
    assert "systemctl --quiet enable keylime_verifier\nsystemctl --quiet restart keylime_verifier\n" in called
    told = capsys.readouterr().out
    known = f"--fingerprint {fingerprint(AUTHORITY)}" if sends_authority else "--ca FILE"
    assert f"keylime-setup node --control {address} {known}" in told


TENANT = """\
#!/bin/sh
echo "keylime_tenant $*" >>{calls}
echo '{{"checks": [{{"subject": "EK store", "grade": "bad", "text": "is empty", "remedy": "fill it"}},'
echo ' {{"subject": "clock", "grade": "ok", "text": "is right", "remedy": ""}}]}}'
exit 1
"""


def test_control_ends_with_an_examination_where_the_tenant_is(
    address: str, host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("systemctl", "#!/bin/sh\n"), ("keylime_tenant", TENANT)):
        (tmp_path / "bin" / name).write_text(text.format(calls=tmp_path / "calls"))
        (tmp_path / "bin" / name).chmod(0o755)
    with tls_server(address, 8881), listening(address, 8890), listening(address, 8891):
        set_up_control(argparse.Namespace(address=[address], listen=None, no_start=False), host)
    assert (tmp_path / "calls").read_text().endswith("keylime_tenant doctor --json\n")
    told = capsys.readouterr().out
    assert "doctor: 1 of 2 things do not work\n  BAD      EK store: is empty; fill it\nFingerprint" in told
    assert "clock" not in told


def test_an_agent_is_examined_in_the_environment_of_its_service(
    address: str, host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = {
        "systemctl": 'case "$1" in show) echo \'TCTI=tabrmd: "NAME=two words"\';; esac',
        "keylime_agent": """[ "$2" != --json ] || echo '{"checks": [{"subject": "TPM", "grade": "warning",'\
            "\\"text\\": \\"$TCTI $NAME\\"", '"remedy": "look"}]}'""",
    }
    for name, text in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    own = own_address_towards(address)
    with tls_server(address, 8881), listening(address, 8890), listening(own, 9002):
        set_up_node(node_arguments(address, fingerprint=fingerprint(AUTHORITY), no_start=False), host)
    told = capsys.readouterr().out
    assert "  warning  TPM: tabrmd: two words; look\n" in told


def test_an_examination_that_tells_nothing_is_an_error(host: Host, tmp_path: Path) -> None:
    (tmp_path / "bin/keylime_agent").write_text("#!/bin/sh\necho 'keylime_agent: error: no' >&2\nexit 1\n")
    with pytest.raises(ConfigError, match=r"^keylime_agent --check: keylime_agent: error: no$"):
        host.examine("keylime_agent", "--check")


def test_a_service_that_does_not_start_is_quoted(host: Host, tmp_path: Path) -> None:
    for name, text in (("systemctl", "exit 1"), ("journalctl", "echo 'no TPM'")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    with pytest.raises(ConfigError, match="enable keylime_agent failed: no TPM"):
        host.start("keylime_agent")


def test_a_program_that_refuses_is_quoted(host: Host, tmp_path: Path) -> None:
    (tmp_path / "bin/keylime_agent").write_text("#!/bin/sh\necho 'keylime_agent: error: no' >&2\nexit 1\n")
    with pytest.raises(ConfigError, match=r"^keylime_agent: error: no$"):
        host.check("keylime_agent")
    with pytest.raises(ConfigError, match="keylime_nothing is not installed"):
        host.check("keylime_nothing")


def test_patience_ends(address: str) -> None:
    with listening(address, 9002):
        demand_answer(address, 9002, "")
    with pytest.raises(ConfigError, match="is it on"):
        demand_answer(address, 9002, "is it on", patience_s=0.3)
