"""Digests of the files in a directory tree, such as the root file system of a reference machine."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime_policy.archive import Hash, initrd_files
from keylime_policy.compression import MalformedArchive
from keylime_policy.files import unusable
from keylime_policy.messages import Messages
from keylime_policy.working import working

# What is made at run time, belongs to users, or is another machine's.
SKIPPED = (
    *("sys", "run", "proc", "lost+found", "dev"),
    *("media", "snap", "mnt", "var", "tmp"),
)
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_BATCH = 256  # files for one task: queueing costs more than hashing a small file
_PIECE = 1 << 20
_ROOT_UID = 0

Digests = dict[str, set[str]]


def tree_digests(
    root: Path,
    algorithm: HashAlgorithm,
    messages: Messages,
    *,
    skip: Sequence[str] = (),
    owner: int = _ROOT_UID,
) -> Digests:
    """Digests of the regular files under `root` that belong to `owner`, by the path that IMA prints.

    Names are seen from `root`. Raises ConfigError, naming a file that cannot be read.
    """
    if not root.is_dir():
        raise ConfigError(f"--rootfs {root}: no such directory")
    top = os.fsencode(root.resolve())
    mounts = foreign_mounts(top, _mount_table())
    with working(messages, "Looking for files"):
        paths = list(_walk(top, skipped_directories(top, skip) | mounts, owner))
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    digests: Digests = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # hashing lets other threads run
        results = pool.map(lambda batch: _hash_batch(batch, algorithm), batches)
        try:
            for batch in messages.progress(results, len(batches), "Hashing files"):
                for path, digest in batch:
                    add_digest(digests, path.removeprefix(top.rstrip(b"/")), digest, messages)
        finally:
            pool.shutdown(cancel_futures=True)
    messages.remark(f"{len(digests)} files hashed under {root}")
    return digests


def ramdisk_digests(directory: Path, algorithm: HashAlgorithm, messages: Messages) -> Digests:
    """Digests of the files inside every RAM disk (`initr*`) of `directory`, by the path that IMA prints.

    Raises ConfigError, naming the RAM disk that cannot be read.
    """
    try:
        images = sorted(path for path in directory.iterdir() if path.name.startswith("initr"))
    except OSError as error:
        raise unusable("--ramdisk-dir", directory, error) from error
    images = [path for path in images if path.is_file()]
    if not images:
        messages.warning(f"--ramdisk-dir {directory}: no file whose name begins with initr")
    digests: Digests = {}
    for images_read in messages.progress([[image] for image in images], len(images), "Reading RAM disks"):
        for image in images_read:
            _add_image(digests, image, algorithm, messages)
    return digests


def _add_image(digests: Digests, image: Path, algorithm: HashAlgorithm, messages: Messages) -> None:
    count = 0
    try:
        with open(image, "rb") as file:
            for member in initrd_files(iter(lambda: file.read(_PIECE), b""), lambda: new_hash(algorithm)):
                add_digest(digests, b"/" + member.name, member.digest, messages)
                count += 1
    except OSError as error:
        raise unusable("--ramdisk-dir", image, error) from error
    except MalformedArchive as error:
        raise ConfigError(f"--ramdisk-dir {image}: {error}") from error
    messages.remark(f"{count} files hashed in {image}")


def new_hash(algorithm: HashAlgorithm) -> Hash:
    """An empty hash. Raises ConfigError for one that the crypto library lacks (SM3)."""
    try:
        return hashlib.new("sm3" if algorithm is HashAlgorithm.SM3_256 else algorithm.label)
    except ValueError as error:
        raise ConfigError(f"--algo {algorithm.label}: this machine's crypto library lacks it") from error


def skipped_directories(top: bytes, skip: Sequence[str]) -> frozenset[bytes]:
    """The directories under `top` to pass over; `skip` as seen from inside or from outside of `top`."""
    prefix = top.rstrip(b"/") + b"/"
    skipped = {prefix + os.fsencode(name) for name in SKIPPED}
    for text in filter(None, map(str.strip, skip)):
        inside = os.fsencode(os.path.normpath(text)).lstrip(b"/")
        skipped.add(prefix + inside)
        outside = os.fsencode(os.path.abspath(text))
        if prefix != b"/" and outside.startswith(prefix):
            skipped.add(outside)
    return frozenset(skipped)


def parse_mounts(mountinfo: bytes) -> Mapping[bytes, bytes]:
    """The type of the file system at each mount point (proc(5), mountinfo); of several the last."""
    mounts = {}
    for line in mountinfo.splitlines():
        fields, separator, source = line.partition(b" - ")
        parts, kind = fields.split(b" "), source.split(b" ", 1)[0]
        if separator and len(parts) > 4:
            mounts[_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), parts[4])] = kind
    return mounts


def foreign_mounts(top: bytes, mounts: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """The mount points below `top` with another type of file system than `top` itself has."""
    parents = [point for point in mounts if _is_within(top, point)]
    own = mounts[max(parents, key=len)] if parents else b""
    return frozenset(
        point for point, kind in mounts.items() if point != top and _is_within(point, top) and kind != own
    )


def _is_within(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def _mount_table() -> Mapping[bytes, bytes]:
    try:
        return parse_mounts(_MOUNTS.read_bytes())
    except OSError:
        return {}  # no Linux, no mounts to be told apart


def _walk(top: bytes, skipped: frozenset[bytes], owner: int) -> Iterator[bytes]:
    directories = [top]
    while directories:
        directory = directories.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir(follow_symlinks=False):
                        if entry.path not in skipped:
                            directories.append(entry.path)
                    elif entry.is_file(follow_symlinks=False) and _belongs_to(entry, owner):
                        yield entry.path
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError as error:
            raise unusable("--rootfs", os.fsdecode(directory), error) from error


def _belongs_to(entry: "os.DirEntry[bytes]", owner: int) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return status.st_uid == owner and stat.S_ISREG(status.st_mode)


def _hash_batch(paths: Sequence[bytes], algorithm: HashAlgorithm) -> list[tuple[bytes, str]]:
    results = []
    # One for all files: most are small, and a fresh one for each costs more than reading it.
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    for path in paths:
        digest = new_hash(algorithm)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                while count := os.readv(descriptor, (buffer,)):
                    digest.update(view[:count])
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError as error:
            raise unusable("--rootfs", os.fsdecode(path), error) from error
        results.append((path, digest.hexdigest()))
    return results


def add_digest(digests: Digests, path: bytes, digest: str, messages: Messages) -> None:
    """Adds the digest of a file under the name that IMA prints."""
    try:
        name = path.decode()
    except UnicodeDecodeError:
        messages.warning(f"{os.fsdecode(path)!a} is left out: its name is not UTF-8")
        return
    # The kernel prints blanks in names as underscores, so that is how the name will be compared.
    digests.setdefault(name.replace(" ", "_"), set()).add(digest)
