"""Digests of the files in all packages of a repository, of Debian's kind or of RPM's.

What is believed hangs on one signature: of the Release file or of repomd.xml, which has checksums of the
indices, which have checksums of the packages.
"""

import contextlib
import datetime
import email.utils
import hashlib
import io
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime_policy.compression import MalformedArchive, unpacked
from keylime_policy.file_tree import Digests, add_digest, new_hash
from keylime_policy.messages import Messages
from keylime_policy.packages.deb import data_archive, parse_packages, parse_release
from keylime_policy.packages.package import Package
from keylime_policy.packages.places import (
    Directory,
    PlaceError,
    RepositoryAddress,
    RepositoryPlace,
    checked,
    read_file,
)
from keylime_policy.packages.rpm import (
    RpmFiles,
    package_files,
    package_head,
    parse_extended_lists,
    parse_primary,
    parse_repomd,
)
from keylime_policy.packages.signatures import dearmoured, load_keys, verify_detached, verify_inline
from keylime_policy.sources import blaming
from keylime_policy.tar_archives import tar_files

_PIECE = 1 << 20
_DEBIAN_KEYS = (Path("/etc/apt/trusted.gpg.d"), Path("/etc/apt/keyrings"), Path("/usr/share/keyrings"))
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "ppc64le": "ppc64el",
    "armv7l": "armhf",
    "i686": "i386",
}
# Packages name files as they were before /bin became /usr/bin; IMA prints where they are.
_MERGED = (b"bin/", b"sbin/", b"lib/", b"lib32/", b"lib64/", b"libx32/")
KEY_OPTION = "--repository-key"
UNSIGNED_OPTION = "--unsigned-repository"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryOrder:
    """A repository and how to read it. `suite`, `components`, `architectures` are of Debian's kind."""

    place: RepositoryPlace
    keys: tuple[str, ...] = ()
    unsigned: bool = False
    workers: int = 8
    suite: str | None = None
    components: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


def make_place(option: str, where: str) -> RepositoryPlace:
    """The place that a flag names. Raises ConfigError."""
    if option.startswith("--remote"):
        return RepositoryAddress(option, where)
    directory = Path(where)
    if not directory.is_dir():
        raise ConfigError(f"{option} {where}: no such directory")
    return Directory(option, directory)


def deb_repository(
    order: RepositoryOrder, algorithm: HashAlgorithm, messages: Messages, now: datetime.datetime
) -> Digests:
    """Digests of the files in every package of a repository of Debian's kind. Raises ConfigError."""
    packages = _deb_packages(order, messages, now)
    if packages is None:
        packages = _bare_packages(order, messages)

    def read(package: Package) -> list[tuple[bytes, str]]:
        with blaming(order.place.name, package.path), checked(order.place, package) as file:
            members = tar_files(data_archive(_pieces(file)), lambda: new_hash(algorithm))
            return [(one.name, one.digest) for one in members if one.digest is not None]

    digests: Digests = {}
    for files in _in_parallel(read, packages, order, messages):
        for name, digest in files:
            for path in names_of(name):
                add_digest(digests, path, digest, messages)
    messages.remark(f"{len(packages)} packages read in {order.place.name}")
    return digests


def rpm_repository(order: RepositoryOrder, algorithm: HashAlgorithm, messages: Messages) -> Digests:
    """Digests of the files in every package of an RPM repository. Raises ConfigError."""
    place = order.place
    indices = _rpm_indices(order, messages)
    digests: Digests = {}
    extended = indices.get("filelists-ext")
    if extended is not None and isinstance(place, RepositoryAddress):
        with blaming(place.name, extended.path), _plain(place, extended) as file:
            others = 0
            for name, digest in parse_extended_lists(file):
                if len(digest) == 2 * algorithm.size:
                    for path in names_of(name.lstrip(b"/")):
                        add_digest(digests, path, digest.lower(), messages)
                else:
                    others += 1
        if others:
            messages.warning(
                f"{place.name}: {others} files have no {algorithm.label} digest and are left out"
            )
        return digests
    primary = indices.get("primary")
    if primary is None:
        raise ConfigError(f"{place.name}: repodata/repomd.xml lists no primary index")
    with blaming(place.name, primary.path), _plain(place, primary) as file:
        packages = list(parse_primary(file))

    keys = load_keys(KEY_OPTION, order.keys)

    def read(package: Package) -> RpmFiles:
        files = _signed_files(place, package, keys)
        if files is not None:
            return files
        with blaming(place.name, package.path), checked(place, package) as opened:
            return package_files(opened)

    add_rpm_files(digests, _in_parallel(read, packages, order, messages), algorithm, place.name, messages)
    messages.remark(f"{len(packages)} packages read in {place.name}")
    return digests


def _signed_files(place: RepositoryPlace, package: Package, keys: Sequence[bytes]) -> RpmFiles | None:
    """The files of a package whose headers alone are fetched, if one of `keys` signed them.

    They must be those of the very package that the index lists: others, older ones, are signed as well.
    """
    if not keys or package.header_end is None or not isinstance(place, RepositoryAddress):
        return None
    try:
        with place.open(package.path, package.header_end) as file:
            head = package_head(file)
    except (MalformedArchive, PlaceError):
        return None  # the whole package will show what is wrong
    if head.identity != package.identity:
        return None
    for signature in head.signatures:
        with contextlib.suppress(ConfigError):
            verify_detached(package.path, head.signed, signature, keys)
            return head.files
    return None


def add_rpm_files(
    digests: Digests, packages: Iterable[RpmFiles], algorithm: HashAlgorithm, source: str, messages: Messages
) -> None:
    """Adds the files of packages; those whose digests are of another algorithm are named and left out."""
    others: list[RpmFiles] = []
    for package in packages:
        if package.algorithm is algorithm:
            for name, digest in package.digests.items():
                for path in names_of(name.lstrip(b"/")):
                    add_digest(digests, path, digest, messages)
        elif package.digests:
            others.append(package)
    if others:
        found = {one.algorithm.label if one.algorithm else "MD5 or unknown" for one in others}
        messages.warning(
            f"{source}: {len(others)} packages, such as {others[0].package}, have digests of "
            f"{', '.join(sorted(found))} and not of {algorithm.label}, and are left out (--algo chooses)"
        )


def names_of(name: bytes) -> list[bytes]:
    """The names under which a machine may measure a package's file: as packed, and with /bin in /usr."""
    plain = b"/" + name
    return [plain, b"/usr" + plain] if name.startswith(_MERGED) else [plain]


def _in_parallel(
    read: Callable[[Package], T], packages: Sequence[Package], order: RepositoryOrder, messages: Messages
) -> Iterator[T]:
    with ThreadPoolExecutor(max_workers=order.workers) as pool:
        results = ([result] for result in pool.map(read, packages))
        try:
            for one in messages.progress(results, len(packages), "Reading packages"):
                yield from one
        finally:
            pool.shutdown(cancel_futures=True)


def _deb_packages(order: RepositoryOrder, messages: Messages, now: datetime.datetime) -> list[Package] | None:
    """The packages that a repository's indices list; None where there are no indices."""
    place = order.place
    flat = order.suite is None or order.suite.endswith("/")
    suite = (order.suite or "").strip("/")
    top = suite if flat else f"dists/{suite}"
    text = _release(order, f"{top}/" if top else "", messages)
    if text is None:
        if order.suite is None and isinstance(place, Directory) and not order.keys:
            return None
        raise ConfigError(
            f"{place.name}: has no {top}/InRelease and no {top}/Release; is the suite right (--deb-suite)?"
        )
    architectures = order.architectures or (_ARCHITECTURES.get(platform.machine(), platform.machine()),)
    with blaming(place.name, f"{top}/Release"):
        release = parse_release(text.decode("utf-8", "replace"))
        paths = [release.top_index()] if flat else release.indices(order.components, architectures)
    _check_age(release.valid_until, now, place, messages)
    packages: dict[str, Package] = {}
    for path in paths:
        checksum, size = release.files[path]
        index = Package(f"{top}/{path}" if top else path, "sha256", checksum, size)
        with blaming(place.name, index.path), _plain(place, index) as file:
            lines = io.TextIOWrapper(file, encoding="utf-8", errors="replace")
            packages.update({package.path: package for package in parse_packages(iter(lines))})
    return list(packages.values())


def _release(order: RepositoryOrder, prefix: str, messages: Messages) -> bytes | None:
    """The Release file, if a known key signed it, or nobody demands that. Raises ConfigError."""
    place = order.place
    inline, plain = read_file(place, f"{prefix}InRelease"), None
    signature = None
    if inline is None:
        plain, signature = read_file(place, f"{prefix}Release"), read_file(place, f"{prefix}Release.gpg")
    if inline is None and plain is None:
        return None
    where = f"{place.name}: {prefix}{'InRelease' if inline is not None else 'Release'}"
    if order.unsigned:
        messages.warning(f"{where}: nobody has checked who signed it ({UNSIGNED_OPTION})")
        return plain if inline is None else _unsigned_text(inline)
    keys = load_keys(KEY_OPTION, order.keys) or _debian_keys()
    if not keys:
        raise ConfigError(f"{where}: there is no key to check it with: give {KEY_OPTION}")
    if inline is not None:
        return verify_inline(where, inline, keys)
    if signature is None or plain is None:
        raise ConfigError(f"{where}: is not signed; {UNSIGNED_OPTION} reads it all the same")
    verify_detached(where, plain, signature, keys)
    return plain


def _unsigned_text(inline: bytes) -> bytes:
    """What stands between the heads of a signed text and its signature."""
    text = inline.replace(b"\r\n", b"\n").partition(b"\n\n")[2] if inline.startswith(b"-----") else inline
    return text.partition(b"-----BEGIN PGP SIGNATURE-----")[0]


def _debian_keys() -> list[bytes]:
    """The keys that this machine's apt knows repositories by."""
    keys = []
    for directory in _DEBIAN_KEYS:
        for path in sorted(directory.glob("*")) if directory.is_dir() else ():
            if path.suffix in (".gpg", ".asc", ".pgp"):
                content = path.read_bytes()
                if content[:1] >= b"\x80" or content.startswith(b"-----BEGIN PGP PUBLIC KEY"):
                    keys.append(dearmoured(str(path), content))
    return keys


def _check_age(
    valid_until: str | None, now: datetime.datetime, place: RepositoryPlace, messages: Messages
) -> None:
    if valid_until is None:
        return
    try:
        end = email.utils.parsedate_to_datetime(valid_until)
    except ValueError:
        return
    if end.tzinfo is None:
        end = end.replace(tzinfo=datetime.UTC)
    if end < now:
        messages.warning(
            f"{place.name}: its Release file was valid until {valid_until}: are these packages the newest?"
        )


def _bare_packages(order: RepositoryOrder, messages: Messages) -> list[Package]:
    """The packages in a directory without any index, taken as they are."""
    if not isinstance(order.place, Directory):
        raise TypeError("only a directory can be looked through")
    found = sorted(order.place.root.rglob("*.deb"))
    if not found:
        raise ConfigError(f"{order.place.name}: has no Release file and no package (*.deb)")
    messages.warning(f"{order.place.name}: has no Release file: its packages are taken as they are, unsigned")
    return [_as_it_is(order.place.root, path) for path in found]


def _as_it_is(root: Path, path: Path) -> Package:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Package(str(path.relative_to(root)), "sha256", digest, None)


def _rpm_indices(order: RepositoryOrder, messages: Messages) -> dict[str, Package]:
    place, path = order.place, "repodata/repomd.xml"
    where = f"{place.name}: {path}"
    content = read_file(place, path)
    if content is None:
        raise ConfigError(f"{where} is not there; is it the top of the repository?")
    signature = read_file(place, f"{path}.asc")
    if order.unsigned:
        messages.warning(f"{where}: nobody has checked who signed it ({UNSIGNED_OPTION})")
    elif signature is None:
        if order.keys:
            raise ConfigError(f"{where}: is not signed; {UNSIGNED_OPTION} reads it all the same")
        messages.warning(f"{where}: is not signed; nothing vouches for these packages")
    elif order.keys:
        verify_detached(where, content, signature, load_keys(KEY_OPTION, order.keys))
    else:
        own = read_file(place, f"{path}.key")
        if own is None:
            raise ConfigError(f"{where}: is signed, and {path}.key is not there: give {KEY_OPTION}")
        verify_detached(where, content, signature, [dearmoured(f"{place.name}: {path}.key", own)])
        messages.warning(
            f"{where}: is signed by the key that lies beside it, which shows that nothing was damaged, and "
            f"not who made it; {KEY_OPTION} says whom you trust"
        )
    with blaming(place.name, path):
        return dict(parse_repomd(content))


@contextmanager
def _plain(place: RepositoryPlace, package: Package) -> Iterator[io.BufferedReader]:
    """An index without its compression, checked, as a file object."""
    with checked(place, package) as file:
        yield io.BufferedReader(_Pieces(unpacked(_pieces(file))), _PIECE)


class _Pieces(io.RawIOBase):
    """A raw file of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what it is called with
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_PIECE), b"")
