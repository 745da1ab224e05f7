"""A daemon's certificates: renewed where they are its own to renew, taken up when their files change.

Each process looks by itself, so that workers and other daemons that share the files need not be told. What is
decided stands in `keylime.pki.lifetimes`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from keylime.errors import KeylimeError
from keylime.pki.lifetimes import CertificateFile, remark, short_remark, unusable
from keylime.pki.service_certificates import Done, RenewalImpossible
from keylime.pki.tls import TlsFiles
from keylime.service.health import Health

log = logging.getLogger(__name__)

Renew: TypeAlias = Callable[[], Done]
"""Renews what is due of the service's own certificates, if it is. Raises KeylimeError."""

TakeUp: TypeAlias = Callable[[TlsFiles], None]
"""Has the process use the files as they are now. Raises KeylimeError, unchanged."""

_LOOK_S = 10.0  # at files that may have changed
# By the clock on the wall: a machine that has slept, or whose clock was set, does not wait for longer.
_RENEW_INTERVAL = timedelta(hours=1)
_TELL_INTERVAL = timedelta(days=1)

_Fingerprint: TypeAlias = tuple[tuple[int, int, int] | None, ...]


class CertificateKeeper:
    """Looks after the certificates that a process uses."""

    def __init__(
        self,
        files: TlsFiles,
        *,
        renew: Renew | None = None,
        is_speaker: bool = True,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        look_s: float = _LOOK_S,
    ) -> None:
        """`renew` None leaves renewal to others. One of several equal processes is the speaker: what is said
        daily is said once. Raises ConfigError when a certificate cannot be read.
        """
        self.on_change: TakeUp | None = None  # the files are looked at in vain until it is there
        self._files = files
        self._renew = renew
        self._is_speaker = is_speaker
        self._now = now
        self._look_s = look_s
        self._renewed_at: datetime | None = None
        self._told_at: datetime | None = None
        self._said: frozenset[tuple[object, ...]] = frozenset()
        self._failure: str | None = None
        self._renewal_failure: str | None = None
        self._seen = _fingerprint(files.paths)
        self._in_use = files.certificates()

    @property
    def in_use(self) -> tuple[CertificateFile, ...]:
        """The certificates as they were taken up last."""
        return tuple(self._in_use)

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._look_s)

    async def look(self) -> None:
        """Renews what is due, takes up what has changed, says what is to be said."""
        now = self._now()
        if self._renew is not None and _is_over(self._renewed_at, _RENEW_INTERVAL, now):
            self._renewed_at = now
            await self._renew_once(self._renew)
        seen = _fingerprint(self._files.paths)
        if seen == self._seen:
            self._failure = None
        elif self.on_change is not None:
            self._take_up(self.on_change, seen)
        self._tell()

    def follow(self, files: TlsFiles) -> None:
        """A reload has taken up `files`, from now on; what is to be said is said again."""
        self._files = files
        self._seen = _fingerprint(files.paths)
        self._in_use = files.certificates()
        self._failure = None
        self._renewed_at = self._told_at = None

    async def problem(self) -> str | None:
        """The check of the certificates, see `health`: because of which the work cannot be done."""
        now = self._now()
        problems = [short_remark(one, now) for one in unusable(self._in_use, now)]
        if problems and self._failure is not None:
            problems.append("new files cannot be used, see the log")
        return "; ".join(dict.fromkeys(problem for problem in problems if problem)) or None

    def remark(self) -> str | None:
        """What will be a problem unless somebody acts, in words fit for anyone."""
        now = self._now()
        remarks = [short_remark(one, now) for one in self._in_use]
        if self._renewal_failure is not None:
            remarks.append("they cannot be renewed, see the log")
        if self._failure is not None:
            remarks.append("new files cannot be used, see the log")
        return "; ".join(dict.fromkeys(one for one in remarks if one)) or None

    async def _renew_once(self, renew: Renew) -> None:
        try:
            done = await asyncio.to_thread(renew)
        except KeylimeError as error:
            self._renewal_failure = str(error)
            return
        self._renewal_failure = None
        log_done(done, self._files.directory)

    def _take_up(self, take_up: TakeUp, seen: _Fingerprint) -> None:
        try:
            in_use = self._files.certificates()
            take_up(self._files)
        except KeylimeError as error:
            # Somebody may be in the middle of copying them: the next look may find what fits.
            self._failure = (
                f"changed files of certificates cannot be used, the former ones still are: {error}"
            )
            return
        self._seen, self._in_use, self._failure = seen, in_use, None
        log.info(
            "took up certificates that have changed: %s", ", ".join(sorted({str(one) for one in in_use}))
        )

    def _tell(self) -> None:
        """What is new at once, all of it daily. The words may change meanwhile: days pass."""
        now = self._now()
        again = _is_over(self._told_at, _TELL_INTERVAL, now)
        if again:
            self._told_at = now
        bad = unusable(self._in_use, now)
        said: dict[tuple[object, ...], tuple[int, str]] = {}
        for one in self._in_use:
            if (text := remark(one, now)) is not None:
                key: tuple[object, ...] = (one.holder, one.path, one.lifetime, one.lifetime.validity(now))
                level = logging.ERROR if one in bad else logging.WARNING
                said[key] = max(said.get(key, (level, text)), (level, text))
        if self._failure is not None:
            said[(self._failure,)] = (logging.WARNING, self._failure)
        if self._renewal_failure is not None:
            said[(self._renewal_failure,)] = (logging.ERROR, self._renewal_failure)
        for key, (level, text) in said.items():
            if self._is_speaker and (again or key not in self._said):
                log.log(level, "%s", text)
        self._said = frozenset(said)


def kept_certificates(
    files: TlsFiles, ensure: Renew, health: Health, *, is_speaker: bool
) -> CertificateKeeper:
    """A keeper that `health` asks; it renews by `ensure` what is the service's own. Raises ConfigError."""
    keeper = CertificateKeeper(files, renew=ensure if files.generate else None, is_speaker=is_speaker)
    health.add("certificates", keeper.problem)
    health.note("certificates", keeper.remark)
    return keeper


def ensure_at_start(files: TlsFiles, ensure: Renew, log: logging.Logger) -> None:
    """Makes or renews by `ensure`; what cannot be renewed may be good for a while. Raises ConfigError."""
    try:
        log_done(ensure(), files.directory)
    except RenewalImpossible as error:
        log.error("%s", error)


def log_done(done: Done, directory: Path) -> None:
    """Says what was made or renewed in the directory of a service's own authority."""
    if done.created:
        log.info("Created in %s: %s", directory, ", ".join(done.created))
    if done.renewed:
        log.info("Renewed in %s: %s", directory, ", ".join(done.renewed))
    if "ca" in done.renewed:
        log.warning(
            "the CA in %s has new dates: copy cacert.crt to registrars, tenants and agents "
            "(trusted_client_ca, trusted_server_ca) before the former one ends",
            directory,
        )


def _is_over(since: datetime | None, interval: timedelta, now: datetime) -> bool:
    """Whether an interval is, whichever way the clock has gone."""
    return since is None or abs(now - since) >= interval


def _fingerprint(paths: Sequence[Path]) -> _Fingerprint:
    return tuple(_state_of(path) for path in paths)


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
