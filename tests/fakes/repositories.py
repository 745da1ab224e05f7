"""Small repositories of packages, signed by keys of their own, and a server for them on loopback."""

import gzip
import hashlib
import json
import lzma
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

DATA = Path(__file__).parent.parent / "data" / "packages"
RPM = DATA / "keylime-sample-1.0-1.noarch.rpm"
RPM_KEY = DATA / "packages.asc"
RPM_FILES = {
    "/etc/sample_with_blank.conf": "fe3209d6d4f51935b391288a43df48d9ddece1a992597ae53387ca16611a9179",
    "/usr/bin/sample": "3ab9f954e88d36b7dd4e4d07f010d4dbe7bcbb5899b38945a22de7673444b68c",
}


_HEADERS = 6421  # bytes of the sample up to its payload
_COMMON = 'xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm"'


def call(*command: str | Path, stdin: bytes | None = None) -> bytes:
    """The output of a program that must succeed."""
    done = subprocess.run(  # noqa: S603 - programs of the system, called with ours
        [str(part) for part in command], input=stdin, capture_output=True, timeout=100, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.decode()}")
    return done.stdout


class Signer:
    """An OpenPGP key of its own; `close` ends the agent that gpg starts."""

    def __init__(self, home: Path, name: str) -> None:
        home.mkdir(mode=0o700)
        self._gpg = (shutil.which("gpg") or "gpg", "--homedir", home, "--batch", "--quiet")
        self._home = home
        call(*self._gpg, "--passphrase", "", "--quick-gen-key", name, "ed25519", "sign", "never")
        self.armoured = call(*self._gpg, "--armor", "--export")
        self.binary = call(*self._gpg, "--export")

    def inline(self, text: bytes) -> bytes:
        """A text with its signature inside."""
        return call(*self._gpg, "--clearsign", stdin=text)

    def detached(self, content: bytes) -> bytes:
        """An armoured signature."""
        return call(*self._gpg, "--armor", "--detach-sign", stdin=content)

    def close(self) -> None:
        call(shutil.which("gpgconf") or "gpgconf", "--homedir", self._home, "--kill", "gpg-agent")


def make_deb(target: Path, files: Mapping[str, bytes], *, compression: str = "xz") -> Path:
    """A package with these files, made by dpkg-deb."""
    tree = target.with_suffix(".tree")
    for name, content in {"/DEBIAN/control": _control(target.stem), **files}.items():
        path = tree / name.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tree / "usr").mkdir(exist_ok=True)
    (tree / "usr/link").symlink_to("bin")
    call("dpkg-deb", "--root-owner-group", f"-Z{compression}", "--build", tree, target)
    shutil.rmtree(tree)
    return target


def _control(name: str) -> bytes:
    return (
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n"
        "Description: a sample\n"
    ).encode()


def index_debs(root: Path, suite: str, *, valid_until: str | None = None) -> bytes:
    """Writes the index of the packages in `root`/pool; the text of the Release file that lists it."""
    stanzas = []
    for deb in sorted((root / "pool").glob("*.deb")):
        content = deb.read_bytes()
        stanzas.append(
            f"Package: {deb.stem}\nFilename: pool/{deb.name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\nDescription: a sample\n of several lines\n"
        )
    packed = lzma.compress("\n".join(stanzas).encode())
    index = root / f"dists/{suite}/main/binary-amd64/Packages.xz"
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_bytes(packed)
    end = f"Valid-Until: {valid_until}\n" if valid_until else ""
    return (
        f"Origin: test\nSuite: {suite}\nArchitectures: amd64\nComponents: main\n{end}SHA256:\n"
        f" {hashlib.sha256(packed).hexdigest()} {len(packed)} main/binary-amd64/Packages.xz\n"
    ).encode()


def index_rpms(root: Path, *, digests: Mapping[str, str] | None = None, version: str = "1.0") -> bytes:
    """Writes the metadata of the RPMs in `root`; the text of its repomd.xml. `digests`: filelists-ext too."""
    data = root / "repodata"
    data.mkdir(exist_ok=True)
    packages = "".join(
        f'<package type="rpm"><name>keylime-sample</name><arch>noarch</arch>'
        f'<version epoch="0" ver="{version}" rel="1"/>'
        f'<checksum type="sha256" pkgid="YES">{hashlib.sha256(rpm.read_bytes()).hexdigest()}</checksum>'
        f'<size package="{rpm.stat().st_size}"/><location href="{rpm.name}"/>'
        f'<format><rpm:header-range start="4504" end="{_HEADERS}"/></format></package>'
        for rpm in sorted(root.glob("*.rpm"))
    )
    files = {"primary": f"<metadata {_COMMON}>{packages}</metadata>"}
    if digests is not None:
        listed = "".join(f'<file hash="{digest}">{name}</file>' for name, digest in digests.items())
        files["filelists-ext"] = (
            '<filelists-ext xmlns="http://linux.duke.edu/metadata/filelists-ext">'
            f'<package pkgid="x">{listed}<file type="dir">/etc</file></package></filelists-ext>'
        )
    listed = ""
    for kind, text in files.items():
        packed = gzip.compress(f'<?xml version="1.0"?>{text}'.encode())
        (data / f"{kind}.xml.gz").write_bytes(packed)
        listed += (
            f'<data type="{kind}"><checksum type="sha256">{hashlib.sha256(packed).hexdigest()}</checksum>'
            f'<location href="repodata/{kind}.xml.gz"/><size>{len(packed)}</size></data>'
        )
    content = f'<repomd xmlns="http://linux.duke.edu/metadata/repo">{listed}</repomd>'.encode()
    (data / "repomd.xml").write_bytes(content)
    return content


def make_image(directory: Path, layers: Sequence[Mapping[str, bytes | None]]) -> Path:
    """An OCI directory of an image with these layers; a file without content is a directory."""
    descriptors = []
    for layer in layers:
        buffer = BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in layer.items():
                member = tarfile.TarInfo(name)
                member.size = len(content or b"")
                member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
                archive.addfile(member, BytesIO(content or b""))
        descriptors.append(_blob(directory, gzip.compress(buffer.getvalue()), "layer.v1.tar+gzip"))
    manifest = _blob(directory, json.dumps({"layers": descriptors}).encode(), "manifest.v1+json")
    builder = {
        **_blob(directory, b'{"layers": []}', "manifest.v1+json"),
        "platform": {"architecture": "unknown"},
    }
    index = _blob(directory, json.dumps({"manifests": [manifest, builder]}).encode(), "index.v1+json")
    (directory / "index.json").write_text(json.dumps({"manifests": [index]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def _blob(directory: Path, content: bytes, kind: str) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    path = directory / "blobs/sha256" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {
        "mediaType": f"application/vnd.oci.image.{kind}",
        "digest": f"sha256:{digest}",
        "size": len(content),
    }


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The address of a server for the files of a directory."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    """Knows a range that begins at the beginning, as servers of repositories do."""

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=0-([0-9]+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()[: int(asked[1]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
