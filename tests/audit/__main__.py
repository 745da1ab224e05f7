"""`python -m tests.audit [--strict]`: does a pinned dependency have a known vulnerability?

Asks the advisory database through pip-audit and remembers the answers in .audit/, from where they are taken
when the database cannot be reached. What cannot be told is said in one line, and is a failure with --strict.
"""

import argparse
import datetime
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.audit.findings import Known, MalformedLock, conclude, parse_answers, parse_lock

_ROOT = Path(__file__).parents[2]
_LOCK = _ROOT / "requirements/runtime.txt"
_CACHE = _ROOT / ".audit"
_LIMIT_S = 300


def main() -> None:
    """Exit status: 0 nothing is known, 1 a vulnerability is, 2 not everything could be checked (--strict)."""
    parser = argparse.ArgumentParser(prog="python -m tests.audit")
    parser.add_argument("--strict", action="store_true", help="fail when something could not be checked")
    strict = parser.parse_args().strict
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    try:
        pins = parse_lock(_LOCK.read_text("utf-8"))
    except (OSError, MalformedLock) as error:
        sys.exit(f"audit: error: {_LOCK.name}: {error}; write it anew with `make lock`")
    known = _remembered()
    report, reason = _ask(_LOCK)
    if report is not None:
        try:
            known |= parse_answers(report, today)
        except msgspec.DecodeError as error:
            reason = f"pip-audit answered something else: {error}"
    _remember({str(pin): known[str(pin)] for pin in pins if str(pin) in known})
    conclusion = conclude(pins, known, today, reason=reason, strict=strict)
    for line in conclusion.lines:
        print(f"audit: {line}")
    sys.exit(conclusion.status)


def _ask(lock: Path) -> tuple[bytes | None, str | None]:
    """pip-audit's report about `lock`, or None and why there is none."""
    command: Sequence[str] = (
        *(sys.executable, "-m", "pip_audit"),
        *("--requirement", str(lock), "--require-hashes", "--disable-pip"),
        *("--format", "json", "--progress-spinner", "off", "--timeout", "10"),
    )
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LIMIT_S, check=False)  # noqa: S603 - our own
    except subprocess.TimeoutExpired:
        return None, "the advisory database does not answer"
    if done.stdout.strip():
        return done.stdout, None
    if b"No module named pip_audit" in done.stderr:
        return None, "pip-audit is not installed"
    return None, "the advisory database cannot be reached"


def _remembered() -> dict[str, Known]:
    try:
        return msgspec.json.decode((_CACHE / "known.json").read_bytes(), type=dict[str, Known])
    except (OSError, msgspec.DecodeError):
        return {}


def _remember(known: dict[str, Known]) -> None:
    _CACHE.mkdir(exist_ok=True)
    (_CACHE / "known.json").write_bytes(msgspec.json.encode(known))


if __name__ == "__main__":
    main()
