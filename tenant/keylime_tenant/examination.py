"""What `doctor` finds on the machine itself: configuration, directories, certificates, clock, EK store."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from keylime.checkup import Result, bad, ok, unknown, warning
from keylime.config.loader import load_settings
from keylime.config.settings import Settings, work_dir
from keylime.errors import ConfigError, KeylimeError
from keylime.pki.lifetimes import CertificateFile, life_remark, remedy, when
from keylime.pki.tls import resolve_tls_files
from keylime.pki.tpm_cert_store import load_trust_store
from keylime.safe_paths import require_safe_directory

_SERVICES = ("verifier", "registrar")
_LEAST_FREE = 256 << 20  # bytes; services stop writing earlier than a file system is full
_TOO_FULL = 0.95
_LIMIT_S = 60.0


def configuration(environ: Mapping[str, str]) -> Iterator[Result]:
    """Whether each component can use its files, those of the services as the services themselves say."""
    for component in ("tenant", "verifier", "registrar", "ca", "logging"):
        subject = f"configuration of {component}"
        try:
            settings = load_settings(component, environ=environ)
            said = _service_says(component, environ) if component in _SERVICES else None
        except KeylimeError as error:
            yield bad(subject, str(error))
            continue
        if said is not None:
            yield bad(subject, said)
            continue
        files = ", ".join(str(path) for path in settings.files) or "defaults, no file"
        for text in settings.warnings:
            yield warning(subject, text)
        if not settings.warnings:
            yield ok(subject, files)


def _service_says(component: str, environ: Mapping[str, str]) -> str | None:
    """What keeps the service's program, where it is installed, from using its configuration."""
    name = f"keylime_{component}"
    beside = Path(sys.executable).with_name(name)
    program = str(beside) if beside.exists() else shutil.which(name, path=environ.get("PATH"))
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - the program of the same installation
            [program, "--check-config"],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} --check-config: {error}"
    if done.returncode == 0:
        return None
    said = (done.stderr.strip() or done.stdout.strip() or "no reason is told").splitlines()[-1]
    return said.removeprefix(f"{name}: error: ")


def directories(environ: Mapping[str, str]) -> Iterator[Result]:
    """The working directory, and the room that it has."""
    directory = work_dir(environ)
    subject = f"directory {directory}"
    if not directory.is_dir():
        yield bad(subject, "does not exist", "start keylime_verifier, which makes it, or set KEYLIME_DIR")
        return
    try:
        require_safe_directory(directory)
    except ConfigError as error:
        yield bad(subject, str(error))
    else:
        if os.access(directory, os.R_OK | os.X_OK):
            yield ok(subject, "is ours to read, and nobody else's to write")
        else:
            yield bad(subject, "cannot be read by this user", "run as root, or as the user keylime")
    yield disk(directory)


def disk(directory: Path) -> Result:
    """Whether there is room where databases and certificates are kept."""
    usage = shutil.disk_usage(directory)
    subject, free = f"disk of {directory}", f"{usage.free >> 20} MiB free"
    if usage.free < _LEAST_FREE:
        return bad(subject, free, "make room: services stop writing verdicts when there is none")
    if usage.used > _TOO_FULL * usage.total:
        return warning(subject, f"{free}, {usage.used * 100 // usage.total} % in use", "make room")
    return ok(subject, free)


def clock(environ: Mapping[str, str]) -> Result:
    """Whether something keeps this machine's clock right."""
    program = shutil.which("timedatectl", path=environ.get("PATH"))
    if program is None:
        return unknown("clock", f"it is {when(datetime.now(UTC))}; nothing here tells whether that is right")
    try:
        done = subprocess.run(  # noqa: S603 - a tool of the system
            [program, "show", "-p", "NTPSynchronized", "--value"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return unknown("clock", f"timedatectl: {error}")
    return clock_result(done.stdout.strip(), datetime.now(UTC))


def clock_result(said: str, now: datetime) -> Result:
    """What timedatectl's answer means."""
    if said == "yes":
        return ok("clock", f"it is {when(now)}, and kept right")
    if said == "no":
        return warning("clock", f"it is {when(now)}, and nothing keeps it right", "timedatectl set-ntp true")
    return unknown("clock", f"it is {when(now)}; timedatectl does not tell whether that is kept right")


def certificates(environ: Mapping[str, str]) -> Iterator[Result]:
    """The certificates of tenant and services that are here, and their ends."""
    directory = work_dir(environ)
    seen: set[Path] = set()
    for component in ("tenant", *_SERVICES):
        subject = f"certificates of {component}"
        try:
            settings = load_settings(component, environ=environ)
            files = resolve_tls_files(settings, component, directory)
        except KeylimeError:
            continue  # told as configuration
        if component != "tenant" and not files.directory.is_dir():
            yield unknown(subject, f"{files.directory} is not here: {component} runs elsewhere, or never has")
            continue
        try:
            found = files.certificates()
        except ConfigError as error:
            yield bad(
                subject,
                str(error),
                f"start keylime_verifier, or copy them from the host of the CA into {files.directory}",
            )
            continue
        for certificate in found:
            if certificate.path not in seen:
                seen.add(certificate.path)
                yield certificate_result(certificate, datetime.now(UTC))


def certificate_result(certificate: CertificateFile, now: datetime) -> Result:
    """What the dates of a certificate mean."""
    subject = f"certificate {certificate.path}"
    said = life_remark(certificate, now)
    if said is None:
        return ok(subject, f"{certificate.holder.value}, good until {when(certificate.lifetime.ends)}")
    validity = certificate.lifetime.validity(now)
    text = said.removeprefix(f"the {certificate} ")
    if validity.is_usable:
        return warning(subject, text, remedy(certificate))
    return bad(subject, text, "" if "timedatectl" in text else remedy(certificate))


def databases(environ: Mapping[str, str]) -> Iterator[Result]:
    """The databases of services that are here, as far as a file tells."""
    for component, name in (("verifier", "cv_data.sqlite"), ("registrar", "reg_data.sqlite")):
        try:
            settings = load_settings(component, environ=environ)
        except KeylimeError:
            continue
        path = sqlite_path(settings, work_dir(environ) / name)
        subject = f"database of {component}"
        if path is None:
            host = urlsplit(settings.text("database_url")).hostname
            yield unknown(subject, f"a server at {host}: the service says below whether it is reached")
        elif not path.exists():
            yield unknown(subject, f"{path} is not here: {component} runs elsewhere, or never has")
        else:
            yield database_result(subject, path)


def sqlite_path(settings: Settings, usual: Path) -> Path | None:
    """The file of a SQLite database; None for a server."""
    url = settings.text("database_url")
    if url in ("", "sqlite"):
        return usual
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def database_result(subject: str, path: Path) -> Result:
    """Whether a file is a database that can be read; nothing is written, and no lock is kept."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_LIMIT_S)) as connection:
            (tables,) = connection.execute(
                "SELECT count(*) FROM sqlite_master WHERE type = 'table'"
            ).fetchone()
    except (sqlite3.Error, ValueError) as error:
        return bad(subject, f"{path} cannot be read: {error}", "run as root, or restore it from a backup")
    if not tables:
        return bad(subject, f"{path} is empty", f"start {subject.rpartition(' ')[2]}, which makes its tables")
    return ok(subject, f"{path}, {path.stat().st_size >> 10} KiB")


def store_result(store: Path) -> Result:
    """Whether EK certificates can be checked at all."""
    subject = f"EK store {store}"
    if not store.is_dir():
        return bad(
            subject,
            "does not exist, so that no TPM's maker is trusted",
            f"keylime_ca import-vendor FILE --store {store}, or keylime_tenant trust-issuer -u ID",
        )
    try:
        found = load_trust_store(store)
    except KeylimeError as error:
        return bad(subject, str(error))
    count = sum(len(items) for items in found.by_subject.values())
    if found.unreadable:
        return warning(
            subject, f"cannot be read: {', '.join(found.unreadable)}", "replace or remove these files"
        )
    if not count:
        return bad(subject, "is empty, so that no TPM's maker is trusted", "keylime_ca import-vendor FILE")
    return ok(subject, f"{count} certificates of makers")


def waiting_agents(registered: Sequence[str], attested: Sequence[str]) -> tuple[str, ...]:
    """The agents that are registered and have never been added, in the registrar's order."""
    known = frozenset(attested)
    return tuple(agent for agent in registered if agent not in known)
