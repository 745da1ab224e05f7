"""From root to the agent's own user, once what only root can do is done."""

import grp
import logging
import os
import pwd
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import keylime
from keylime.errors import ConfigError

log = logging.getLogger(__name__)

# An interpreter, its library, and our own code: more of each is read long after the start.
_NEEDED = (Path(sys.executable), Path(os.__file__), Path(keylime.__file__))
_MAKE = (
    "make it (`systemd-sysusers` does for keylime and tss where the package is installed), or name another"
)


@dataclass(frozen=True, slots=True)
class Account:
    """A user and primary group to become; supplementary groups are those of the user."""

    name: str
    uid: int
    gid: int


def find_account(run_as: str) -> Account | None:
    """The account of `user` or `user:group`; None for an empty text. Raises ConfigError."""
    if not run_as:
        return None
    user_name, _, group_name = run_as.partition(":")
    try:
        user = pwd.getpwnam(user_name)
    except KeyError:
        raise ConfigError(f"[agent] run_as = {run_as}: there is no user {user_name!r}: {_MAKE}") from None
    try:
        gid = grp.getgrnam(group_name).gr_gid if group_name else user.pw_gid
    except KeyError:
        raise ConfigError(f"[agent] run_as = {run_as}: there is no group {group_name!r}: {_MAKE}") from None
    return Account(user_name, user.pw_uid, gid)


def target_account(run_as: str) -> Account | None:
    """The account to change to: none when this is not root, or root is to stay. Raises ConfigError."""
    if os.geteuid() != 0:
        return None
    account = find_account(run_as)
    if account is None:
        log.warning(
            "[agent] run_as is empty: the agent, its payload scripts and its actions keep running as root"
        )
    return account if account is None or account.uid != 0 else None


def drop_privileges(account: Account) -> None:
    """Become `account` for good. Raises ConfigError when it does not take."""
    try:
        os.initgroups(account.name, account.gid)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as error:
        raise ConfigError(f"cannot become user {account.name}: {error.strerror}") from error
    if os.getresuid() != (account.uid,) * 3 or os.getresgid() != (account.gid,) * 3:
        raise ConfigError(f"could not become user {account.name} completely")
    log.info("running as user %s", account.name)
    unreadable = unreadable_files(_NEEDED)
    if unreadable:
        log.warning(
            "user %s may not read %s: what is loaded later, and actions of payloads in Python, will fail; "
            "install Python and keylime where everybody may read, not below a home directory",
            account.name,
            " and ".join(map(str, unreadable)),
        )


def unreadable_files(files: Iterable[Path]) -> tuple[Path, ...]:
    """Those of `files` that this process, as whoever it is now, may not read."""
    return tuple(path for path in files if not os.access(path, os.R_OK))
