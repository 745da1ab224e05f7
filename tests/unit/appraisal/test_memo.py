from hashlib import sha256

from keylime.appraisal.memo import MAX_BOOT_LOG_BYTES, MAX_BOOT_LOGS, AppraisalMemo
from keylime.measured_boot.replay import ParsedBootLog
from tests.captures import capture
from tests.fakes.event_logs import build_log, record

LOG = capture("grub-secureboot").boot_log
BIG = 1 << 20


def remember(memo: AppraisalMemo, log: bytes) -> object:
    return memo.boot_log(log, sha256(log).hexdigest())


def log_number(number: int, size: int = 8) -> bytes:
    return build_log([record(0, 13, number.to_bytes(8, "big").ljust(size, b"x"))])


def test_a_boot_log_is_parsed_once() -> None:
    memo = AppraisalMemo()
    first = remember(memo, LOG)
    assert isinstance(first, ParsedBootLog)
    assert remember(memo, LOG) is first


def test_the_log_that_was_not_used_for_longest_is_forgotten_first() -> None:
    memo = AppraisalMemo()
    kept, forgotten = remember(memo, log_number(0)), remember(memo, log_number(1))
    for number in range(2, MAX_BOOT_LOGS):
        remember(memo, log_number(number))
    assert remember(memo, log_number(0)) is kept
    remember(memo, log_number(MAX_BOOT_LOGS))
    assert remember(memo, log_number(0)) is kept
    assert remember(memo, log_number(1)) is not forgotten


def test_an_agent_that_sends_ever_new_large_logs_does_not_fill_the_memory() -> None:
    memo = AppraisalMemo()
    for number in range(2 * MAX_BOOT_LOG_BYTES // BIG):
        remember(memo, log_number(number, BIG))
        assert memo.boot_log_bytes <= MAX_BOOT_LOG_BYTES
    assert memo.boot_log_bytes > MAX_BOOT_LOG_BYTES - 2 * BIG
