"""The issuers that device identities must have: the operator's store, read when it has changed."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from keylime.errors import ConfigError
from keylime.pki.der import TolerantCertificate
from keylime.pki.tpm_cert_store import TRUST_STORE_SUFFIXES, load_trust_store

log = logging.getLogger(__name__)

_State: TypeAlias = tuple[tuple[str, int, int, int], ...]


class Anchors:
    """The certificates in a directory. A registration must not cost as much as reading all of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: tuple[_State, tuple[TolerantCertificate, ...]] | None = None

    def load(self) -> Sequence[TolerantCertificate]:
        """Those that are there now; none when they cannot be read, which is logged."""
        try:
            state = self._state()
            if self._read is None or self._read[0] != state:
                store = load_trust_store(self._directory)
                for sentence in store.unreadable:
                    log.error("%s", sentence)
                groups = store.by_subject.values()
                self._read = (state, tuple(entry for group in groups for entry in group))
        except (ConfigError, OSError) as error:
            self._read = None
            log.error("%s", error)
            return ()
        return self._read[1]

    def _state(self) -> _State:
        """What differs when a file was added, removed, written or replaced."""
        found = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if Path(entry.name).suffix.lower() in TRUST_STORE_SUFFIXES:
                    status = entry.stat()
                    found.append((entry.name, status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(sorted(found))
