"""Parsers of packages and indices: hostile bytes, and paths that lead out of a repository."""

import base64
import contextlib
import hashlib
import io
import os
import pty
import subprocess
import sys
import termios
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import ConfigError
from keylime_policy.compression import MalformedArchive
from keylime_policy.messages import Messages
from keylime_policy.packages.deb import data_archive, parse_packages, parse_release, stanzas
from keylime_policy.packages.package import checked_path
from keylime_policy.packages.places import PlaceError, RepositoryAddress, read_file
from keylime_policy.packages.rpm import (
    package_files,
    parse_extended_lists,
    parse_primary,
    parse_repomd,
)
from keylime_policy.packages.signatures import dearmoured
from keylime_policy.tar_archives import tar_files
from tests.fakes.repositories import RPM

CONTENT = RPM.read_bytes()
HEADERS = CONTENT[: CONTENT.index(b"\x8e\xad\xe8\x01", 200) + 4000]


@given(st.integers(0, len(HEADERS) - 1), st.integers(1, 255))
def test_an_altered_rpm_gives_files_or_a_declared_error(position: int, change: int) -> None:
    altered = bytearray(CONTENT)
    altered[position] ^= change
    with contextlib.suppress(MalformedArchive):
        package_files(io.BytesIO(bytes(altered)))


@given(st.integers(0, len(HEADERS) - 1))
def test_an_rpm_that_ends_within_its_headers_is_refused(size: int) -> None:
    if size > 4096:
        return  # the headers of this one may have ended
    with contextlib.suppress(MalformedArchive):
        assert package_files(io.BytesIO(CONTENT[:size])).digests == package_files(io.BytesIO(CONTENT)).digests


@given(st.binary(max_size=300))
def test_any_bytes_are_no_package_or_index(data: bytes) -> None:
    ar = b"!<arch>\n" + b"data.tar".ljust(16) + b"0".ljust(12) + b"0".ljust(6) * 2 + b"100644".ljust(8)
    for content in (data, b"!<arch>\n" + data, ar + b"%d".ljust(10) % len(data) + b"`\n" + data):
        with contextlib.suppress(MalformedArchive):
            list(tar_files(data_archive(iter([content])), hashlib.sha256))
    with contextlib.suppress(MalformedArchive):
        list(tar_files(iter([data]), hashlib.sha256))
    for parse in (parse_primary, parse_extended_lists):
        with contextlib.suppress(MalformedArchive):
            list(parse(io.BytesIO(b"<metadata>" + data)))
    with contextlib.suppress(MalformedArchive):
        parse_repomd(data)
    with contextlib.suppress(MalformedArchive):
        parse_release(data.decode("latin-1"))


@pytest.mark.parametrize("path", ["", "/etc/x", "../x", "a/../../x", "http://elsewhere/x", "a\nb", "./../x"])
def test_a_path_that_leads_out_of_the_repository_is_refused(path: str) -> None:
    with pytest.raises(MalformedArchive, match="not inside of the repository"):
        checked_path(path)


def test_an_index_needs_good_checksums() -> None:
    assert checked_path("./pool/a.deb") == "pool/a.deb"
    (package,) = parse_packages(iter(["Filename: ./a.deb", f"SHA256: {'ab' * 32}", "Size: 7"]))
    assert (package.path, package.size) == ("a.deb", 7)
    with pytest.raises(MalformedArchive, match="without SHA256"):
        list(parse_packages(iter(["Filename: a.deb", "MD5sum: 00"])))
    with pytest.raises(MalformedArchive, match="lists no file with its SHA-256"):
        parse_release("Suite: x\nMD5Sum:\n 00 1 x\n")
    old = (
        b'<repomd xmlns="http://linux.duke.edu/metadata/repo"><data type="primary"><checksum type="md5">00'
        b'</checksum><location href="p"/></data></repomd>'
    )
    with pytest.raises(MalformedArchive, match="no SHA-256 or longer checksum"):
        parse_repomd(old)


def test_indices_are_those_of_components_and_architectures() -> None:
    main, contrib = "main/binary-amd64/Packages", "contrib/binary-amd64/Packages"
    lines = "".join(f" {'ab' * 32} 1 {path}\n" for path in (f"{main}.gz", f"{main}.xz", contrib))
    head = "Components: updates/main updates/contrib non-free\nArchitectures: amd64 arm64\n"
    release = parse_release(f"{head}SHA256:\n{lines}")
    both = [f"{main}.xz", contrib]
    assert release.indices((), ("amd64",)) == both
    assert release.indices(("contrib", "updates/contrib"), ("amd64",)) == both[1:]
    for components, architecture in (((), "arm64"), (("non-free",), "amd64")):
        with pytest.raises(MalformedArchive, match=r"lists no index of packages for .*: amd64 arm64"):
            release.indices(components, (architecture,))
    with pytest.raises(MalformedArchive, match="for its own directory"):
        release.top_index()


def test_paragraphs_are_told_apart() -> None:
    text = "A: 1\n two\n# comment\nB:2\n\n\n\tlost\nA: 3"
    assert list(stanzas(text.splitlines())) == [{"A": "1\ntwo", "B": "2"}, {"A": "3"}]


def test_armour_is_taken_off() -> None:
    head, tail = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n", b"-----END PGP PUBLIC KEY BLOCK-----\n"
    armoured = head + b"Comment: x\n\nmQ==\n=abcd\n" + tail
    assert dearmoured("x", armoured) == b"\x99"
    assert dearmoured("x", b"\x99\x01") == b"\x99\x01"
    for wrong in (b"", b"text", armoured.replace(b"mQ==", b"m")):
        with pytest.raises(ConfigError, match=r"x: (holds no|the) OpenPGP"):
            dearmoured("x", wrong)


def test_a_server_in_trouble_is_asked_again_and_one_without_the_file_is_not() -> None:
    answers = [503, 200, 404, 500, 500, 500]
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            assert self.headers["Authorization"] == "Basic " + base64.b64encode(b"user:secret").decode()
            self.send_response(answers.pop(0))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    pauses: list[float] = []
    place = RepositoryAddress("--x", f"http://user:secret@127.0.0.1:{server.server_port}/top", pauses.append)
    try:
        assert place.name == f"--x http://127.0.0.1:{server.server_port}/top"
        assert read_file(place, "a b") == b"ok"
        assert read_file(place, "gone") is None
        with pytest.raises(ConfigError, match="the server answered 500"):
            read_file(place, "broken")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == ["/top/a%20b"] * 2 + ["/top/gone"] + ["/top/broken"] * 3
    assert pauses == [1.0, 1.0, 2.0]
    with pytest.raises(PlaceError, match="is the address right"):
        place.open("x")


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.0, 11.0, 11.0, 12.0, 30.0, 30.0])
    messages = Messages("test", clock=lambda: next(times))
    assert list(messages.progress([[1], [2], [3], [4]], 4, "Reading")) == [[1], [2], [3], [4]]
    assert capsys.readouterr().err == "test: Reading: 1 of 4 (25 %)\ntest: Reading: 3 of 4 (75 %)\n"


def test_on_a_terminal_progress_is_a_bar_and_messages_stand_above_it() -> None:
    """Both kinds, on a terminal of 80 columns: nothing but the message stays."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    code = (
        "from keylime_policy.messages import Messages\n"
        "from keylime_policy.working import working\n"
        "m = Messages('test')\n"
        "with working(m, 'Reading'):\n"
        "    m.note('found')\n"
        "print(sum(len(one) for one in m.progress([[1], [2, 3]], 2, 'Hashing')))\n"
    )
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", code],
        stderr=child,
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "TERM": "xterm"},
        timeout=100,
    )
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert done.stdout == b"3\n"
    assert "Reading" in shown
    assert "test: found" in shown
    assert "Hashing" in shown
