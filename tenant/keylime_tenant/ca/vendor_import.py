"""`keylime_ca import-vendor`: TPM makers' CA certificates into the store, and what is trusted from then on.

Makers publish single files and archives; existing installations have a directory. Whatever holds certificates
is taken, whatever does not is counted. A certificate is stored as the bytes that its maker signed.
"""

import argparse
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath

from keylime.command_line import OneLineParser
from keylime.config.loader import load_settings
from keylime.config.settings import path_below, work_dir
from keylime.errors import ConfigError, MalformedEvidence
from keylime.pki.der import MAX_STORED_CERTIFICATE_SIZE
from keylime.pki.files import write_atomically
from keylime.safe_paths import require_safe_directory
from keylime_tenant.ca.cabinet import SIGNATURE, CabinetError, read_cabinet
from keylime_tenant.ca.vendor_certificates import (
    VendorCertificate,
    ca_certificate,
    certificates_in,
    described,
)

COMMAND = "import-vendor"
_MAX_FILES = 20_000
_MAX_FILE = 16 * MAX_STORED_CERTIFICATE_SIZE  # bytes; bundles of several certificates are larger than one
_MAX_TOTAL = 256 * 1024 * 1024
_MAX_CABINET = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FoundCertificate:
    """What an import brought to light; `refused` has a sentence about each certificate that is not taken."""

    certificates: tuple[VendorCertificate, ...]
    refused: tuple[str, ...]
    others: int  # files without any certificate


def import_vendor(arguments: Sequence[str], environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """The whole command. Raises ConfigError."""
    options = _parser().parse_args(arguments)
    store = Path(options.store) if options.store else _configured_store(environ)
    found = read_source(Path(options.source))
    for sentence in found.refused:
        say(f"left out: {sentence}")
    if not found.certificates:
        raise ConfigError(f"{options.source} holds no CA certificate")
    now = datetime.now(UTC)
    added = 0
    for item, is_new in add_to_store(store, found.certificates):
        added += is_new
        say(f"{described(item, now)} ({'new' if is_new else 'there already'})")
    files = f"; {found.others} other files hold none" if found.others else ""
    say(
        f"{added} certificates added to {store}, {len(found.certificates) - added} were there already, "
        f"{len(found.refused)} left out{files}"
    )
    say("TPMs whose EK certificates these have signed, or their sub-CAs, are trusted from now on")


def add_to_store(
    store: Path, certificates: Iterable[VendorCertificate]
) -> list[tuple[VendorCertificate, bool]]:
    """Puts `certificates` into `store`, and says of each whether it is new. Raises ConfigError."""
    _ensure_store(store)
    present = {sha256(one).hexdigest() for _, data in _files(store) for one in certificates_in(data)}
    result = []
    for item in sorted(certificates, key=lambda one: one.file_name):
        is_new = item.fingerprint not in present
        if is_new:
            write_atomically(store / item.file_name, item.pem, 0o644)
            present.add(item.fingerprint)
        result.append((item, is_new))
    return result


def read_source(source: Path) -> FoundCertificate:
    """The CA certificates in a directory, archive or file. Raises ConfigError."""
    certificates: dict[str, VendorCertificate] = {}
    refused, others = [], 0
    for name, data in _files(source):
        encoded = certificates_in(data)
        others += not encoded
        for one in encoded:
            try:
                item = ca_certificate(one)
            except MalformedEvidence as error:
                refused.append(f"{name}: {error}")
            else:
                certificates.setdefault(item.fingerprint, item)
    return FoundCertificate(tuple(certificates.values()), tuple(refused), others)


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all that may hold certificates. Raises ConfigError."""
    try:
        if source.is_dir():
            paths = sorted(path for path in source.rglob("*") if path.is_file())
            _demand_few(len(paths), source)
            for path in paths:
                if path.stat().st_size <= _MAX_FILE:
                    yield str(path), path.read_bytes()
            return
        with source.open("rb") as file:
            start = file.read(4)
        if start == SIGNATURE:
            yield from _cabinet_members(source)
        elif zipfile.is_zipfile(source):
            yield from _members(source)
        elif source.stat().st_size > _MAX_FILE:
            raise ConfigError(f"{source} is larger than {_MAX_FILE} bytes")
        else:
            yield str(source), source.read_bytes()
    except OSError as error:
        raise ConfigError(f"{error.filename or source} cannot be read: {error.strerror}") from error


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    total = 0
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _demand_few(len(members), archive)
            for member in members:
                if member.file_size > _MAX_FILE:
                    continue
                with opened.open(member) as file:
                    data = file.read(_MAX_FILE + 1)  # whatever the archive claims
                total += len(data)
                if total > _MAX_TOTAL:
                    raise ConfigError(f"{archive} holds more than {_MAX_TOTAL} bytes")
                yield f"{archive}: {PurePosixPath(member.filename)}", data
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
        raise ConfigError(f"{archive} cannot be unpacked: {error}") from error


def _cabinet_members(cabinet: Path) -> Iterator[tuple[str, bytes]]:
    if cabinet.stat().st_size > _MAX_CABINET:
        raise ConfigError(f"{cabinet} is larger than {_MAX_CABINET} bytes")
    try:
        for name, data in read_cabinet(cabinet.read_bytes(), most_files=_MAX_FILES, most_bytes=_MAX_TOTAL):
            if len(data) <= _MAX_FILE:
                yield f"{cabinet}: {PureWindowsPath(name).as_posix()}", data
    except CabinetError as error:
        raise ConfigError(
            f"{cabinet} cannot be unpacked: {error}; try `cabextract -d DIRECTORY {cabinet}`, and import the "
            "directory"
        ) from error


def _demand_few(count: int, source: Path) -> None:
    if count > _MAX_FILES:
        raise ConfigError(f"{source} has {count} files, at most {_MAX_FILES} are read")


def _ensure_store(store: Path) -> None:
    if not store.exists():
        try:
            store.mkdir(parents=True)
            store.chmod(0o755)  # nothing in it is secret, and tenant and registrar may be other users
        except OSError as error:
            raise ConfigError(f"{store} cannot be created: {error.strerror}") from error
    require_safe_directory(store)


def _configured_store(environ: Mapping[str, str]) -> Path:
    return path_below(work_dir(environ), load_settings("tenant", environ=environ), "tpm_cert_store")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=f"keylime_ca {COMMAND}",
        description="Add the CA certificates of a TPM's maker to the TPM certificate store.",
        epilog="Compare the fingerprints with those that the maker publishes.",
    )
    parser.add_argument("source", help="a directory, a ZIP archive, a cabinet, or a file (PEM or DER)")
    parser.add_argument("--store", metavar="DIRECTORY", help="the store (default: [tenant] tpm_cert_store)")
    return parser
