"""What appraisals of one process remember for each other: only what they would compute again."""

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias, TypeVar, cast

from keylime.ima.memo import EntryMemo
from keylime.measured_boot.replay import ParsedBootLog, UnreadableBootLog, parse_boot_log
from keylime.measured_boot.user_space_log import (
    UnreadableUserSpaceLog,
    UserSpaceLog,
    read_user_space_log,
)

MAX_BOOT_LOGS = 256
# Real logs have some ten kilobytes, but a hostile agent may send another large one each round. Parsed, a log
# takes up to twelve times its size.
MAX_BOOT_LOG_BYTES = 16 << 20


_Log: TypeAlias = ParsedBootLog | UnreadableBootLog | UserSpaceLog | UnreadableUserSpaceLog
_LogT = TypeVar("_LogT", bound=_Log)


class AppraisalMemo:
    """Bounded memory of parsed IMA lines and logs of boots, keyed by their bytes. One per process."""

    def __init__(self) -> None:
        self.ima = EntryMemo()
        self.boot_log_bytes = 0  # of the remembered logs together, as they were sent
        self._boot_logs: OrderedDict[tuple[str, str], tuple[int, _Log]] = OrderedDict()

    def boot_log(self, log: bytes, digest: str) -> ParsedBootLog | UnreadableBootLog:
        """The firmware's `log`, whose hex SHA-256 is `digest`, parsed; or why it cannot be."""
        return self._remembered("firmware", log, digest, parse_boot_log)

    def os_log(self, log: bytes, digest: str) -> UserSpaceLog | UnreadableUserSpaceLog:
        """The same of the operating system's log."""
        return self._remembered("system", log, digest, read_user_space_log)

    def _remembered(self, kind: str, log: bytes, digest: str, parse: Callable[[bytes], _LogT]) -> _LogT:
        known = self._boot_logs.get((kind, digest))
        if known is not None:
            self._boot_logs.move_to_end((kind, digest))
            return cast("_LogT", known[1])
        parsed = parse(log)
        self._boot_logs[kind, digest] = (len(log), parsed)
        self.boot_log_bytes += len(log)
        while len(self._boot_logs) > MAX_BOOT_LOGS or self.boot_log_bytes > MAX_BOOT_LOG_BYTES:
            self.boot_log_bytes -= self._boot_logs.popitem(last=False)[1][0]
        return parsed
