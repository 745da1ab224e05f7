"""Digests of the files that the package databases of a machine, or of a tree, name as installed."""

import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime_policy.compression import MalformedArchive
from keylime_policy.file_tree import Digests, add_digest, new_hash
from keylime_policy.files import unusable
from keylime_policy.messages import Messages
from keylime_policy.packages.deb import stanzas
from keylime_policy.packages.repositories import add_rpm_files
from keylime_policy.packages.rpm import RpmFiles, header_files
from keylime_policy.source_options import DPKG_OPTION, RPM_OPTION
from keylime_policy.working import working

_RPM_PLACES = ("usr/lib/sysimage/rpm", "var/lib/rpm", "usr/share/rpm")
_RPM_SQLITE = "rpmdb.sqlite"
_RPM_OTHERS = ("Packages.db", "Packages")
_BATCH = 256
_PIECE = 1 << 20
_MAX_LINKS = 40
_SHOWN = 10
_TIME_S = 600


@dataclass(slots=True)
class _Tree:
    """A tree with a root of its own, in which links are followed as a machine that has that root does."""

    root: bytes
    _known: dict[bytes, bytes] = field(default_factory=dict)

    def canonical(self, path: bytes) -> bytes:
        """The absolute name of a file, its directories without links; the file itself may be one."""
        directory, name = os.path.split(path)
        if directory not in self._known:
            self._known[directory] = self._resolve(directory, _MAX_LINKS)
        return self._known[directory].rstrip(b"/") + b"/" + name

    def _resolve(self, path: bytes, left: int) -> bytes:
        resolved = b"/"
        for part in path.split(b"/"):
            if part in (b"", b"."):
                continue
            if part == b"..":
                resolved = os.path.dirname(resolved)
                continue
            step = resolved.rstrip(b"/") + b"/" + part
            try:
                target = os.readlink(self.outside(step))
            except OSError:
                resolved = step  # no link
                continue
            if not left:
                return path
            resolved = self._resolve(os.path.join(resolved, target), left - 1)
        return resolved

    def outside(self, path: bytes) -> bytes:
        """The name of a file as seen from here."""
        return self.root.rstrip(b"/") + path


def dpkg_database(root: Path, algorithm: HashAlgorithm, messages: Messages) -> Digests:
    """Digests of the installed files of Debian packages, hashed where they are.

    Only files whose content is that of the package count: dpkg knows its MD5. Raises ConfigError.
    """
    admin = root / "var/lib/dpkg"
    if not (admin / "info").is_dir():
        raise ConfigError(f"{DPKG_OPTION} {root}: there is no {admin}/info; give the root of the tree")
    tree = _Tree(os.fsencode(root.resolve()))
    with working(messages, "Reading the database of dpkg"):
        expected = _expected(admin, tree)
        paths = sorted({tree.canonical(path) for path in _installed(admin)})
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    digests: Digests = {}
    changed: list[bytes] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = pool.map(lambda batch: list(_hashed(tree, batch, algorithm)), batches)
        try:
            for batch in messages.progress(results, len(batches), "Hashing files of packages"):
                for path, digest, md5 in batch:
                    if expected.get(path, md5) == md5:
                        add_digest(digests, path, digest, messages)
                    else:
                        changed.append(path)
        finally:
            pool.shutdown(cancel_futures=True)
    for path in changed[:_SHOWN]:
        messages.warning(f"{os.fsdecode(path)!a} is left out: it is not as its package has it")
    if len(changed) > _SHOWN:
        messages.warning(f"and {len(changed) - _SHOWN} more files that are not as their packages have them")
    return digests


def _installed(admin: Path) -> Iterator[bytes]:
    for listing in sorted((admin / "info").glob("*.list")):
        yield from (line for line in _read(listing).split(b"\n") if line.startswith(b"/") and line != b"/.")


def _expected(admin: Path, tree: _Tree) -> dict[bytes, str]:
    """The MD5 of each file that dpkg has one of."""
    expected = {}
    for sums in sorted((admin / "info").glob("*.md5sums")):
        for line in _read(sums).split(b"\n"):
            digest, _, name = line.partition(b"  ")
            if name:
                expected[tree.canonical(b"/" + name)] = digest.decode("ascii", "replace")
    status = _read(admin / "status").decode("utf-8", "surrogateescape")
    for fields in stanzas(status.splitlines()):
        for entry in fields.get("Conffiles", "").split("\n"):
            path, _, rest = entry.strip().partition(" ")
            if rest and "obsolete" not in rest:
                expected[tree.canonical(os.fsencode(path))] = rest.split(" ")[0]
    return expected


def _hashed(
    tree: _Tree, paths: Iterable[bytes], algorithm: HashAlgorithm
) -> Iterator[tuple[bytes, str, str]]:
    """Name, digest and MD5 of those that are regular files."""
    for path in paths:
        digest, md5 = new_hash(algorithm), hashlib.md5(usedforsecurity=False)
        try:
            descriptor = os.open(
                tree.outside(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if _is_no_file(tree.outside(path)):
                continue
            raise unusable(DPKG_OPTION, os.fsdecode(tree.outside(path)), error) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            continue
        with open(descriptor, "rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                md5.update(piece)
        yield path, digest.hexdigest(), md5.hexdigest()


def _is_no_file(path: bytes) -> bool:
    """Whether what cannot be opened is a link or a device anyway."""
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unusable(DPKG_OPTION, path, error) from error


def rpm_database(root: Path, algorithm: HashAlgorithm, messages: Messages) -> Digests:
    """Digests that the RPM database of a tree has of installed files. Raises ConfigError."""
    directory = next((root / place for place in _RPM_PLACES if _has_database(root / place)), None)
    if directory is None:
        places = ", ".join(str(root / place) for place in _RPM_PLACES)
        raise ConfigError(
            f"{RPM_OPTION} {root}: there is no RPM database in {places}; give the root of the tree"
        )
    if (directory / _RPM_SQLITE).is_file():
        packages = _from_sqlite(directory / _RPM_SQLITE)
    else:
        packages = _from_rpm(directory)
    tree = _Tree(os.fsencode(root.resolve()))
    with working(messages, "Reading the database of RPM"):
        found = [
            RpmFiles(
                one.package,
                one.algorithm,
                {tree.canonical(name).lstrip(b"/"): digest for name, digest in one.digests.items()},
            )
            for one in packages
        ]
    digests: Digests = {}
    add_rpm_files(digests, found, algorithm, f"{RPM_OPTION} {directory}", messages)
    return digests


def _has_database(directory: Path) -> bool:
    return any((directory / name).is_file() for name in (_RPM_SQLITE, *_RPM_OTHERS))


def _from_sqlite(path: Path) -> Iterator[RpmFiles]:
    """The headers in rpm's own kind of database since 4.16, read without a trace."""
    log = path.with_name(f"{path.name}-wal")
    mode = "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)
    except sqlite3.Error as error:
        raise ConfigError(f"{RPM_OPTION} {path}: {error}") from error
    try:
        for number, blob in connection.execute("SELECT hnum, blob FROM Packages ORDER BY hnum"):
            try:
                yield header_files(bytes(blob))
            except MalformedArchive as error:
                raise ConfigError(f"{RPM_OPTION} {path}: package {number}: {error}") from error
    except (sqlite3.Error, TypeError) as error:
        raise ConfigError(f"{RPM_OPTION} {path}: {error}") from error
    finally:
        connection.close()


_QUERY = r"[%{NAME}\t%{=FILEDIGESTALGO}\t%{FILEMODES}\t%{FILEFLAGS}\t%{FILEDIGESTS}\t%{FILENAMES}\n]"


def _from_rpm(directory: Path) -> Iterator[RpmFiles]:
    """What `rpm` says of databases of the older kinds."""
    program = shutil.which("rpm")
    if program is None:
        raise ConfigError(
            f"{RPM_OPTION} {directory}: a database of this kind is read by the program rpm: install it"
        )
    query = _QUERY.replace("%{NAME}", "%{=NAME}")
    done = subprocess.run(  # noqa: S603 - its arguments are ours
        [program, "--dbpath", str(directory.resolve()), "-qa", "--queryformat", query],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIME_S,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ConfigError(
            f"{RPM_OPTION} {directory}: rpm failed: {reason[-1] if reason else done.returncode}"
        )
    return _queried(done.stdout)


def _queried(lines: bytes) -> Iterator[RpmFiles]:
    packages: dict[tuple[bytes, bytes], dict[bytes, str]] = {}
    for line in lines.split(b"\n"):
        name, algorithm, mode, flags, digest, path = [*line.split(b"\t", 5), *[b""] * 6][:6]
        if digest and stat.S_ISREG(int(mode)) and not int(flags) & 1 << 6:
            packages.setdefault((name, algorithm), {})[path] = digest.decode("ascii", "replace")
    for (name, algorithm), digests in packages.items():
        yield RpmFiles(name.decode("utf-8", "replace"), _ALGORITHMS.get(algorithm), digests)


_ALGORITHMS: Mapping[bytes, HashAlgorithm] = {
    b"2": HashAlgorithm.SHA1,
    b"8": HashAlgorithm.SHA256,
    b"9": HashAlgorithm.SHA384,
    b"10": HashAlgorithm.SHA512,
}
