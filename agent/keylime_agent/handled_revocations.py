"""Which revocation messages were acted upon, in memory and in a file that outlives agent and boot."""

import logging
import struct
from pathlib import Path

from keylime.errors import ConfigError
from keylime.pki.files import write_atomically
from keylime_agent.revocation_rules import Handled

log = logging.getLogger(__name__)

_REMEMBERED = 4096
_RECORD = struct.Struct(">32sQ16s")  # delivery_key, seconds since the epoch, boot


class HandledRevocations:
    """The last messages by their delivery_key; `path` keeps them when the agent ends (None: nothing does).

    A file that cannot be read or written costs the memory, never the agent.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._records = {} if path is None else _read(path)

    def get(self, key: bytes) -> Handled | None:
        """What is known of a message; None when it was not acted upon yet."""
        return self._records.get(key)

    def add(self, key: bytes, now: int, boot: bytes) -> None:
        """Remember that a message is acted upon, and forget the oldest one of too many. Writes the file."""
        before = self._records.pop(key, None)
        self._records[key] = Handled(now if before is None else before.first_at, boot)
        while len(self._records) > _REMEMBERED:
            del self._records[next(iter(self._records))]
        if self._path is None:
            return
        content = b"".join(_RECORD.pack(key, it.first_at, it.boot) for key, it in self._records.items())
        try:
            write_atomically(self._path, content, 0o600)
        except ConfigError as error:
            log.warning("after a restart a repeated revocation will be acted upon again: %s", error)


def _read(path: Path) -> dict[bytes, Handled]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("%s cannot be read: %s; revocations handled before are not known", path, error.strerror)
        return {}
    whole = len(data) - len(data) % _RECORD.size
    records = list(_RECORD.iter_unpack(data[:whole]))[-_REMEMBERED:]
    return {key: Handled(first_at, boot) for key, first_at, boot in records}
