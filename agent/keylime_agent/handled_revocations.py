"""Which revocation messages were acted upon: one that comes again, after a reboot too, is no news."""

import logging
from pathlib import Path

from keylime.errors import ConfigError
from keylime.pki.files import write_atomically

log = logging.getLogger(__name__)

_REMEMBERED = 4096
_KEY_SIZE = 32


class HandledRevocations:
    """The last messages by their delivery_key; `path` keeps them when the agent ends (None: nothing does).

    A file that cannot be read or written costs the memory, never the agent.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._keys = dict.fromkeys(() if path is None else _read(path))

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, key: bytes) -> None:
        """Remember a message, and forget the oldest one of too many. Writes the file."""
        self._keys[key] = None
        while len(self._keys) > _REMEMBERED:
            del self._keys[next(iter(self._keys))]
        if self._path is None:
            return
        try:
            write_atomically(self._path, b"".join(self._keys), 0o600)
        except ConfigError as error:
            log.warning("after a restart a repeated revocation will be acted upon again: %s", error)


def _read(path: Path) -> list[bytes]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("%s cannot be read: %s; revocations handled before are not known", path, error.strerror)
        return []
    whole = len(data) - len(data) % _KEY_SIZE
    return [data[at : at + _KEY_SIZE] for at in range(0, whole, _KEY_SIZE)][-_REMEMBERED:]
