"""The secure directory: a small tmpfs of mode 0700 for keys and payloads, so that they never reach a disk.

`mount` is public: payload scripts of deployments import it. Anything at that place that is not what we would
have made ourselves is refused, and a file system that we did not mount is never unmounted.
"""

import ctypes
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keylime.config.settings import is_test_mode, work_dir
from keylime.errors import ConfigError

log = logging.getLogger(__name__)

_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_SIZE = re.compile(r"[1-9][0-9]{0,15}[kKmMgG%]?")
_MS_NOSUID = 2
_MS_NODEV = 4


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo, escapes undone; `device` is what stat calls st_dev."""

    device: int
    mount_point: Path
    options: frozenset[str]
    fs_type: str


@dataclass(frozen=True, slots=True)
class Owner:
    """Numeric user and group."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class SecureDirectory:
    """The directory to use, and whether this process mounted it."""

    path: Path
    mounted_by_us: bool


def mount() -> str:
    """The secure directory of this host, mounted first if need be and if we are root. Raises ConfigError."""
    return str(ensure_secure_directory(work_dir(os.environ), "1m").path)


def ensure_secure_directory(
    directory: Path, size: str, *, owner: Owner | None = None, environ: Mapping[str, str] | None = None
) -> SecureDirectory:
    """The secure directory below the working directory, handed over to `owner` if one is given.

    A tmpfs that is there is used; if there is none, root mounts one of `size` (such as 1m). In test mode a
    plain directory takes its place. Raises ConfigError, which names what is wrong with what is there.
    """
    path = _real_directory(directory) / "secure"
    found = mounted_at(_mounts(), path)
    if found is not None:
        _accept(path, found, owner)
        return SecureDirectory(path, mounted_by_us=False)
    if is_test_mode(os.environ if environ is None else environ):
        return SecureDirectory(_plain_directory(path.with_name("tmpfs-dev"), owner), mounted_by_us=False)
    if os.geteuid() != 0:
        raise ConfigError(
            f"nothing is mounted on {path} and only root can do that; "
            "start var-lib-keylime-secure.mount or start as root"
        )
    _mount_tmpfs(path, size, owner)
    made = mounted_at(_mounts(), path)
    if made is None:
        raise ConfigError(f"the tmpfs mounted on {path} is not there; does another process unmount it?")
    _accept(path, made, owner)
    log.info("mounted a tmpfs of size %s on %s", size, path)
    return SecureDirectory(path, mounted_by_us=True)


def parse_mountinfo(content: bytes) -> tuple[Mount, ...]:
    """The lines of /proc/PID/mountinfo (proc(5)) in order. Raises ConfigError for a line of another shape."""
    # Only blank and newline separate: any other character, \r or a non-breaking blank too, can be in a name.
    return tuple(_parse_mount(line) for line in content.split(b"\n") if line)


def mounted_at(mounts: Sequence[Mount], path: Path) -> Mount | None:
    """What is mounted on exactly this path; of several on top of each other, the last one."""
    return next((found for found in reversed(mounts) if found.mount_point == path), None)


def refusal(path: Path, found: Mount, status: os.stat_result, trusted_uids: frozenset[int]) -> str | None:
    """Why this mount must not hold secrets, or None. `status` is the directory's as it is reached now."""
    if found.fs_type != "tmpfs":
        return f"{path} already mounted on wrong file system type: {found.fs_type}. Unmount to continue."
    if status.st_dev != found.device:
        return f"the tmpfs on {path} is hidden by another mount. Unmount to continue."
    if "rw" not in found.options:
        return f"the tmpfs on {path} is mounted read-only. Unmount to continue."
    if status.st_uid not in trusted_uids:
        return f"{path} belongs to user {status.st_uid}, who is neither root nor the agent's user"
    if status.st_mode & 0o077:
        return f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}); run: chmod 0700 {path}"
    return None


def empty_secure_directory(secure: SecureDirectory) -> None:
    """Delete all that is in the directory, links as links; what cannot be deleted is logged as an error."""
    try:
        entries = list(secure.path.iterdir())
    except OSError as error:
        log.error("cannot empty %s: %s", secure.path, error.strerror)
        return
    for entry in entries:
        try:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        except OSError as error:
            log.error("cannot delete %s: %s", entry, error.strerror)


def unmount_secure_directory(secure: SecureDirectory) -> None:
    """Unmount the directory if this process mounted it and still may; what is in it is gone then."""
    if not secure.mounted_by_us or os.geteuid() != 0:
        return
    if _libc().umount2(os.fsencode(secure.path), 0) != 0:
        log.warning("cannot unmount %s: %s", secure.path, os.strerror(ctypes.get_errno()))


def _mounts() -> tuple[Mount, ...]:
    try:
        return parse_mountinfo(_MOUNTINFO.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{_MOUNTINFO} cannot be read: {error.strerror}; mount a proc file system on /proc"
        ) from error


def _parse_mount(line: bytes) -> Mount:
    # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    head, separator, tail = line.partition(b" - ")
    fields, source = head.split(b" "), tail.split(b" ")
    try:
        major, minor = (int(number) for number in fields[2].split(b":"))
        device = os.makedev(major, minor)
        mount_point, options, fs_type = fields[4], fields[5], source[0]
    except (IndexError, ValueError, OverflowError) as error:
        raise ConfigError("the kernel's list of mounts has a line of unknown shape") from error
    if not separator or not fs_type or not mount_point.startswith(b"/"):
        raise ConfigError("the kernel's list of mounts has a line of unknown shape")
    return Mount(
        device,
        Path(os.fsdecode(_unescape(mount_point))),
        frozenset(os.fsdecode(options).split(",")),
        os.fsdecode(_unescape(fs_type)),
    )


def _unescape(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)


def _real_directory(directory: Path) -> Path:
    """The working directory as mountinfo spells it."""
    try:
        return directory.resolve(strict=True)
    except OSError as error:
        raise ConfigError(
            f"working directory {directory}: {error.strerror}; create it with mode 0700"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of the directory itself: what is checked through it cannot be exchanged for a link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        what = "is a symbolic link" if path.is_symlink() else str(error.strerror)
        raise ConfigError(f"{path} cannot be the secure directory: {what}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _accept(path: Path, found: Mount, owner: Owner | None) -> None:
    with _opened(path) as descriptor:
        status = os.fstat(descriptor)
        if reason := refusal(path, found, status, _trusted_uids(path, owner)):
            raise ConfigError(reason)
        _hand_over(descriptor, path, status, owner)


def _trusted_uids(path: Path, owner: Owner | None) -> frozenset[int]:
    # Who owns the working directory can put there what he likes in any case.
    return frozenset({0, os.geteuid(), owner.uid if owner else path.parent.stat().st_uid})


def _hand_over(descriptor: int, path: Path, status: os.stat_result, owner: Owner | None) -> None:
    if owner is None or status.st_uid == owner.uid:
        return
    try:
        os.fchown(descriptor, owner.uid, owner.gid)
    except OSError as error:
        raise ConfigError(f"{path} belongs to user {status.st_uid}: {error.strerror}") from error


def _plain_directory(path: Path, owner: Owner | None) -> Path:
    """The stand-in of test mode."""
    log.warning("TEST MODE: secrets are kept in %s, which may be on a disk", path)
    _make_directory(path)
    with _opened(path) as descriptor:
        status = os.fstat(descriptor)
        if status.st_uid not in _trusted_uids(path, owner):
            raise ConfigError(
                f"{path} belongs to user {status.st_uid}, who is neither root nor the agent's user"
            )
        if status.st_mode & 0o077:
            raise ConfigError(f"{path} is open to others; run: chmod 0700 {path}")
        _hand_over(descriptor, path, status, owner)
    return path


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {path}: {error.strerror}") from error


def _mount_tmpfs(path: Path, size: str, owner: Owner | None) -> None:
    """The system call instead of mount(8): it takes the opened directory, so no link can come in between."""
    if not _SIZE.fullmatch(size):
        raise ConfigError(f"[agent] secure_size = {size!r}: expected a size such as 1m")
    _make_directory(path)
    user = owner or Owner(os.geteuid(), os.getegid())
    options = f"size={size},mode=0700,uid={user.uid},gid={user.gid}".encode()
    with _opened(path) as descriptor:
        target = f"/proc/self/fd/{descriptor}".encode()
        if _libc().mount(b"tmpfs", target, b"tmpfs", _MS_NOSUID | _MS_NODEV, options) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise ConfigError(f"cannot mount a tmpfs of size {size} on {path}: {reason}")


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_ulong,
        ctypes.c_char_p,
    )
    libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
    return libc
