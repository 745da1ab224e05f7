"""Logging of all programs: one line per message on standard output, shaped by logging.conf.

`init_logging` is public: payload scripts of deployments import it. What a peer sent can never start a line of
its own.
"""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from keylime.config.loader import load_settings
from keylime.config.settings import Settings
from keylime.log_lines import (
    DEFAULT_FORMAT,
    JournalFormatter,
    JsonFormatter,
    LineFormatter,
    LogPlan,
    plan_logging,
)

_JOURNAL_FORMAT = "%(name)s - %(levelname)s - %(message)s"


def setup(
    component: str,
    environ: Mapping[str, str],
    *,
    stream: TextIO | None = None,
    is_result: bool = False,
    etc: Path = Path("/etc/keylime"),
    usr_etc: Path = Path("/usr/etc/keylime"),
) -> logging.Logger:
    """Configure the root logger from logging.conf; the component's own logger. Raises ConfigError.

    With `is_result` the lines are what the program is run for: OSError comes of one that cannot be written,
    which else is passed over. Calling it again replaces the former set-up.
    """
    settings = load_settings("logging", environ=environ, etc=etc, usr_etc=usr_etc)
    output = stream or sys.stdout
    to_journal = is_journal(output, environ)
    _install(plan_logging(settings), output, to_journal=to_journal, is_result=is_result)
    for warning in settings.warnings:
        logging.getLogger("keylime.config").warning("%s", warning)
    return logging.getLogger(f"keylime.{component}")


def log_sources(settings: Settings) -> None:
    """One line for each file that was read."""
    for path in settings.files:
        logging.getLogger("keylime.config").info("Reading configuration from %s", path)


def init_logging(name: str) -> logging.Logger:
    """The logger `keylime.<name>`; in a process that has no logging yet, lines go to standard output."""
    if not logging.getLogger().handlers:
        plan = LogPlan(levels={"": "INFO"})
        _install(plan, sys.stdout, to_journal=is_journal(sys.stdout, os.environ))
    return logging.getLogger(f"keylime.{name}")


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether `stream` goes to the journal, and not only the one that the program was started with."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Output(logging.StreamHandler[TextIO]):
    """Where lines go; remembers which loggers were given a level, for the set-up that comes after it."""

    def __init__(self, stream: TextIO, plan: LogPlan, *, to_journal: bool, is_result: bool = False) -> None:
        super().__init__(stream)
        self._is_result = is_result
        # The journal has the time already; a shape of the operator's own is left as it is.
        is_usual = to_journal and plan.format == DEFAULT_FORMAT
        text = LineFormatter(_JOURNAL_FORMAT if is_usual else plan.format, plan.date_format)
        formatter = JsonFormatter() if plan.is_json else text
        self.setFormatter(JournalFormatter(formatter) if to_journal else formatter)
        self.setLevel(plan.output_level)
        self.named = tuple(plan.levels or ())

    def handleError(self, record: logging.LogRecord) -> None:
        if self._is_result and isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


def _install(plan: LogPlan, stream: TextIO, *, to_journal: bool, is_result: bool = False) -> None:
    root = logging.getLogger()
    for former in [found for found in root.handlers if isinstance(found, _Output)]:
        root.removeHandler(former)
        for name in former.named:
            logging.getLogger(name).setLevel(logging.NOTSET)
    root.addHandler(_Output(stream, plan, to_journal=to_journal, is_result=is_result))
    for name, level in (plan.levels or {}).items():
        logging.getLogger(name).setLevel(level)
