"""Where a repository is: a directory, or an address. Files of it are read whole, or checked into a spool."""

import base64
import hashlib
import http.client
import itertools
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from keylime.errors import ConfigError, KeylimeError
from keylime.version import installed_version
from keylime_policy.packages.package import Package
from keylime_policy.sources import blaming

MAX_INDEX = 256 << 20  # bytes of one small file: a repomd.xml, a Release, a signature
MAX_PACKAGE = 16 << 30
_PIECE = 1 << 20
_TIME_S = 60.0
_TRIES = 3
_PAUSE_S = 1.0


class PlaceError(KeylimeError):
    """A file that cannot be had from a repository; the text says why, and the caller which file."""


class NotThereError(PlaceError):
    """The repository has no such file."""


class RepositoryPlace(Protocol):
    """A repository's files by their path from its root."""

    @property
    def name(self) -> str:
        """How messages name it: the flag, and what was given."""

    def open(self, path: str, first: int | None = None) -> IO[bytes]:
        """The file, or at least its `first` bytes. Raises PlaceError, and of these NotThereError."""


@dataclass(frozen=True, slots=True)
class Directory:
    """A repository in a directory."""

    option: str
    root: Path

    @property
    def name(self) -> str:
        return f"{self.option} {self.root}"

    def open(self, path: str, first: int | None = None) -> IO[bytes]:
        try:
            return open(self.root / path, "rb")
        except FileNotFoundError as error:
            raise NotThereError("is not there") from error
        except OSError as error:
            raise PlaceError(error.strerror or str(error)) from error


@dataclass(frozen=True, slots=True)
class RepositoryAddress:
    """A repository at an address of http or https. Raises ConfigError for another."""

    option: str
    url: str
    pause: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.name}: expected an address that begins with http or https")

    @property
    def name(self) -> str:
        return f"{self.option} {without_password(self.url)}"

    def open(self, path: str, first: int | None = None) -> IO[bytes]:
        for left in reversed(range(_TRIES)):
            try:
                return self._spooled(path, first)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (404, 410):
                    raise NotThereError(f"is not there (the server answered {error.code})") from error
                if not left or error.code < 500:
                    raise PlaceError(f"the server answered {error.code}") from error
            except (OSError, http.client.HTTPException) as error:
                if not left:
                    reason = getattr(error, "reason", None) or error
                    raise PlaceError(f"{reason}; is the address right?") from error
            self.pause(_PAUSE_S * (_TRIES - left))
        raise AssertionError  # the last try returns or raises

    def _spooled(self, path: str, first: int | None) -> IO[bytes]:
        """The file, downloaded: an answer that ends too early is noticed, and asked for again."""
        request = urllib.request.Request(  # noqa: S310 - the scheme is looked at above
            f"{without_password(self.url).rstrip('/')}/{quote(path)}",
            headers={"User-Agent": f"keylime-policy/{installed_version()}", "Accept-Encoding": "identity"},
        )
        if first is not None:
            request.add_header("Range", f"bytes=0-{first - 1}")  # whoever does not know it sends all
        parts = urlsplit(self.url)
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            # Whoever the server sends us to is not told.
            request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(secret).decode()}")
        spool = tempfile.TemporaryFile(prefix="keylime-policy-")  # noqa: SIM115 - whoever asked closes it
        try:
            with urllib.request.urlopen(request, timeout=_TIME_S) as answer:  # noqa: S310 - as above
                received = 0
                while piece := answer.read(_PIECE):
                    received += len(piece)
                    if received > MAX_PACKAGE:
                        raise PlaceError(f"larger than {MAX_PACKAGE >> 30} GiB")
                    spool.write(piece)
                stated = answer.headers.get("Content-Length", "")
                if stated.isdigit() and int(stated) != received:
                    raise http.client.IncompleteRead(b"", int(stated) - received)
        except BaseException:
            spool.close()
            raise
        spool.seek(0)
        return spool


def without_password(url: str) -> str:
    """An address as it may be shown: without a user and a password; other texts as they are."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.scheme else url


def read_file(place: RepositoryPlace, path: str) -> bytes | None:
    """A small file whole; None if there is none. Raises ConfigError."""
    with blaming(place.name, path):
        try:
            with place.open(path) as file:
                pieces = list(itertools.islice(iter(lambda: file.read(_PIECE), b""), MAX_INDEX // _PIECE + 1))
        except NotThereError:
            return None
        if len(pieces) > MAX_INDEX // _PIECE:
            raise PlaceError(f"larger than {MAX_INDEX >> 20} MiB")
    return b"".join(pieces)


@contextmanager
def checked(place: RepositoryPlace, package: Package) -> Iterator[IO[bytes]]:
    """A file whose bytes are what the index says, from its beginning. Raises PlaceError."""
    with place.open(package.path) as file:
        digest = hashlib.new(package.algorithm)
        size = 0
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
        if digest.hexdigest() != package.checksum or size != (package.size or size):
            raise PlaceError(
                f"is not what the index says: {package.algorithm} {digest.hexdigest()} instead of "
                f"{package.checksum}; is the repository being changed?"
            )
        file.seek(0)
        yield file
