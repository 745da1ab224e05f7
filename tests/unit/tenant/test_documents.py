import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import trustme

from keylime.errors import ConfigError, PeerUnreachable
from keylime_tenant.documents import Downloads, is_openpgp_signature
from tests.fakes.scripted_services import Answer, ScriptedServer

CA = trustme.CA()


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("127.0.0.1").configure_cert(context)
    return context


def client_tls(ca: trustme.CA = CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    return context


def fetch(url: str, *, plain: bool = False, tls: ssl.SSLContext | None = None) -> bytes:
    return asyncio.run(Downloads(tls or client_tls(), 10).fetch("--some-url", url, plain=plain))


def test_a_file_is_downloaded_from_a_server_of_the_configured_ca() -> None:
    with ScriptedServer(lambda _call: Answer(raw=b"content"), server_tls()) as server:
        url = f"https://127.0.0.1:{server.port}/policy"
        assert fetch(url) == b"content"
        with pytest.raises(PeerUnreachable, match=r"--some-url.*trusted_server_ca"):
            fetch(url, tls=client_tls(trustme.CA()))


@pytest.mark.parametrize("code", [301, 302, 404, 500])
def test_only_a_plain_success_counts(code: int) -> None:
    with (
        ScriptedServer(lambda _call: Answer(code, raw=b"x"), server_tls()) as server,
        pytest.raises(PeerUnreachable, match=str(code)),
    ):
        fetch(f"https://127.0.0.1:{server.port}/")


@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "file:///etc/passwd", "ftp://h/x", "x", ""])
def test_other_schemes_than_https_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--some-url"):
        fetch(url)


def test_http_is_enough_where_a_checksum_protects_the_file() -> None:
    with ScriptedServer(lambda _call: Answer(raw=b"content"), None) as server:
        assert fetch(f"http://127.0.0.1:{server.port}/", plain=True) == b"content"


@pytest.mark.skipif(shutil.which("gpg") is None, reason="needs the program gpg")
def test_an_openpgp_signature_counts_only_for_its_content_and_key(tmp_path: Path) -> None:
    keys = []
    for name in ("one", "two"):
        home = tmp_path / name
        home.mkdir(mode=0o700)
        gpg = ["gpg", "--homedir", str(home), "--batch", "--passphrase", ""]
        for arguments in (
            ["--quick-generate-key", f"{name}@example.org", "ed25519", "sign"],
            ["--output", str(home / "key"), "--export"],
        ):
            subprocess.run([*gpg, *arguments], check=True, capture_output=True)  # noqa: S603
        keys.append((home / "key").read_bytes())
    (tmp_path / "content").write_bytes(b"content")
    subprocess.run(  # noqa: S603
        [
            *["gpg", "--homedir", str(tmp_path / "one"), "--batch", "--detach-sign"],
            *["--output", str(tmp_path / "sig"), str(tmp_path / "content")],
        ],
        check=True,
        capture_output=True,
    )
    signature = (tmp_path / "sig").read_bytes()
    assert asyncio.run(is_openpgp_signature(b"content", signature, keys[0]))
    assert not asyncio.run(is_openpgp_signature(b"Content", signature, keys[0]))
    assert not asyncio.run(is_openpgp_signature(b"content", signature, keys[1]))
    assert not asyncio.run(is_openpgp_signature(b"content", b"x", keys[0]))
