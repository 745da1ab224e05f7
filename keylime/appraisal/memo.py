"""What appraisals of one process remember for each other: only what they would compute again."""

from collections import OrderedDict

from keylime.ima.memo import EntryMemo
from keylime.measured_boot.replay import ParsedBootLog, UnreadableBootLog, parse_boot_log

_MAX_BOOT_LOGS = 256


class AppraisalMemo:
    """Bounded memory of parsed IMA lines and boot logs, keyed by their bytes. One per process."""

    def __init__(self) -> None:
        self.ima = EntryMemo()
        self._boot_logs: OrderedDict[str, ParsedBootLog | UnreadableBootLog] = OrderedDict()

    def boot_log(self, log: bytes, digest: str) -> ParsedBootLog | UnreadableBootLog:
        """`log`, whose hex SHA-256 is `digest`, parsed; or why it cannot be."""
        known = self._boot_logs.get(digest)
        if known is None:
            known = self._boot_logs[digest] = parse_boot_log(log)
            if len(self._boot_logs) > _MAX_BOOT_LOGS:
                self._boot_logs.popitem(last=False)
        else:
            self._boot_logs.move_to_end(digest)
        return known
