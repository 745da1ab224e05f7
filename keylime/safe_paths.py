"""Who else may change what a service trusts: owner and mode of files, of their directories, of links to them.

Nobody but root and the service's own users may. A file is as safe as every directory and link on the way to
it: who may write a directory can put another file into it. Every failure is a ConfigError with the path and
the command that mends it. What is not there, or cannot be looked at, is the business of whoever opens it.
"""

import contextlib
import grp
import importlib.util
import os
import pwd
import shlex
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from keylime.errors import ConfigError

SERVICE_ACCOUNT = "keylime"  # the user that packages make for the daemons

_MAX_LINKS = 40  # as the kernel


@dataclass(frozen=True, slots=True)
class Owners:
    """The users and groups that may change what is trusted; `heir` should own what somebody else does."""

    users: frozenset[int]
    groups: frozenset[int]
    heir: int

    @classmethod
    def of_service(cls, *more: tuple[int, int]) -> Self:
        """Root, the user of this process, the service account, and `more` (pairs of user and group)."""
        # From root on, the last one is who the service will be: it should own what somebody else does.
        pairs = [(0, 0)]
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(SERVICE_ACCOUNT)
            pairs.append((account.pw_uid, account.pw_gid))
        pairs += more
        heir = os.geteuid() or pairs[-1][0]
        pairs.append((os.geteuid(), os.getegid()))
        return cls(frozenset(user for user, _ in pairs), frozenset(group for _, group in pairs), heir)


@dataclass(frozen=True, slots=True)
class Looseness:
    """What is wrong with a file: a phrase about it, and the command that mends it, without the path."""

    phrase: str
    command: str


@dataclass(frozen=True, slots=True)
class _Step:
    path: Path
    status: os.stat_result
    is_last: bool
    holds: bool  # a directory in which the file itself, or a link on the way, was looked up


def find_looseness(
    status: os.stat_result, owners: Owners, names: "Names", *, only_mode: bool = False, sticky_helps: bool
) -> Looseness | None:
    """Why others than `owners` may change the file with this `status`; None when they may not.

    `sticky_helps` where the sticky bit of a directory is enough, since what matters in it has an owner.
    """
    is_link = stat.S_ISLNK(status.st_mode)
    if status.st_uid not in owners.users and not only_mode:
        flag = "-h " if is_link else ""
        return Looseness(f"belongs to {names.user(status.st_uid)}", f"chown {flag}{names.user(owners.heir)}")
    is_sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
    if is_link or (sticky_helps and is_sticky):
        return None
    mode = stat.S_IMODE(status.st_mode)
    by_all = bool(mode & stat.S_IWOTH)
    by_group = bool(mode & stat.S_IWGRP) and status.st_gid not in owners.groups and not only_mode
    if not (by_all or by_group):
        return None
    whom = "everybody" if by_all else f"group {names.group(status.st_gid)}"
    return Looseness(
        f"may be written by {whom} (mode {mode:04o})",
        f"chmod {'g' * by_group}{'o' * by_all}-w",
    )


@dataclass(frozen=True, slots=True)
class Names:
    """How users and groups are called."""

    user: Callable[[int], str]
    group: Callable[[int], str]


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


_SYSTEM_NAMES = Names(_user, _group)


def require_safe_file(path: Path, owners: Owners | None = None) -> None:
    """Raises ConfigError when others may change what is read at `path`, or put something else there."""
    _require(path, owners or Owners.of_service(), is_directory=False)


def require_safe_directory(path: Path, owners: Owners | None = None) -> None:
    """Raises ConfigError when others may put files into the directory `path`, or another in its place.

    A sticky bit does not help: it keeps files from being replaced and not from being added.
    """
    _require(path, owners or Owners.of_service(), is_directory=True)


def require_safe_store(path: Path, owners: Owners | None = None) -> None:
    """The same for a directory of which every file counts, and for its files."""
    chosen = owners or Owners.of_service()
    require_safe_directory(path, chosen)
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return
    for entry in entries:
        _require(entry, chosen, is_directory=False)


def require_safe_module(name: str) -> None:
    """The same for the files of a Python module that will be imported, and of the packages it is in.

    Whoever owns this program may own them. A module that is not found is the business of who imports it.
    """
    own = os.stat(__file__)
    owners = Owners.of_service((own.st_uid, own.st_gid))
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:count]))
        except Exception:  # noqa: BLE001 - the packages above run here; whoever imports it says what it was
            return
        if spec is None or not spec.has_location or spec.origin is None:
            continue
        require_safe_file(Path(spec.origin), owners)
        if spec.cached is not None and (cache := Path(spec.cached).parent).is_dir():
            require_safe_directory(cache, owners)


def _require(path: Path, owners: Owners, *, is_directory: bool) -> None:
    for step in _steps(path):
        is_strict = step.is_last or step.holds or stat.S_ISLNK(step.status.st_mode)
        found = find_looseness(
            step.status,
            owners,
            _SYSTEM_NAMES,
            # Further up, a directory of somebody else's is where people have put their files all the time.
            only_mode=not is_strict,
            sticky_helps=not (step.is_last and is_directory),
        )
        if found is not None and not _is_read_only(step.path):
            command = f"{found.command} {shlex.quote(str(step.path))}"
            raise ConfigError(f"{step.path} {found.phrase}; run: {command}")


def _steps(path: Path) -> Iterator[_Step]:
    """Everything on the way to what `path` names: directories and links from the root on, and what it is."""
    passed: list[tuple[Path, os.stat_result]] = []
    holding = {}
    pending = list(reversed(path.absolute().parts[1:]))
    here, links = Path("/"), 0
    try:
        passed.append((here, os.lstat(here)))
        while pending:
            part = pending.pop()
            if part == "..":
                here = here.parent
                continue
            entry = here / part
            status = os.lstat(entry)
            passed.append((entry, status))
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise ConfigError(f"{path} cannot be used: too many symbolic links")
                holding[here] = True
                target = Path(os.readlink(entry))
                pending.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
                here = Path("/") if target.is_absolute() else here
            else:
                here = entry
    except OSError:
        here = here / "absent"  # what is not there yet is as safe as its directory
    holding[here.parent] = True
    for entry, status in passed:
        yield _Step(entry, status, entry == here, entry in holding)


def _is_read_only(path: Path) -> bool:
    """Whether the file system is mounted so that nobody writes to it, whatever the modes say."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False
