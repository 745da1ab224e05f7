"""What appraisals of one process remember for each other: only what they would compute again."""

from collections import OrderedDict

from keylime.ima.memo import EntryMemo
from keylime.measured_boot.replay import ParsedBootLog, UnreadableBootLog, parse_boot_log

MAX_BOOT_LOGS = 256
# Real logs have some ten kilobytes, but a hostile agent may send another large one each round. Parsed, a log
# takes up to twelve times its size.
MAX_BOOT_LOG_BYTES = 16 << 20


class AppraisalMemo:
    """Bounded memory of parsed IMA lines and boot logs, keyed by their bytes. One per process."""

    def __init__(self) -> None:
        self.ima = EntryMemo()
        self.boot_log_bytes = 0  # of the remembered logs together, as they were sent
        self._boot_logs: OrderedDict[str, tuple[int, ParsedBootLog | UnreadableBootLog]] = OrderedDict()

    def boot_log(self, log: bytes, digest: str) -> ParsedBootLog | UnreadableBootLog:
        """`log`, whose hex SHA-256 is `digest`, parsed; or why it cannot be."""
        known = self._boot_logs.get(digest)
        if known is not None:
            self._boot_logs.move_to_end(digest)
            return known[1]
        parsed = parse_boot_log(log)
        self._boot_logs[digest] = (len(log), parsed)
        self.boot_log_bytes += len(log)
        while len(self._boot_logs) > MAX_BOOT_LOGS or self.boot_log_bytes > MAX_BOOT_LOG_BYTES:
            self.boot_log_bytes -= self._boot_logs.popitem(last=False)[1][0]
        return parsed
