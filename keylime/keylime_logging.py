"""Logging of all programs: one line per message on standard output, shaped by logging.conf.

`init_logging` is public: payload scripts of deployments import it. What a peer sent can never start a line of
its own.
"""

import logging
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO, TypeAlias

from keylime.config.loader import Settings, load_settings
from keylime.config.tables.logging import LEVELS
from keylime.errors import ConfigError

# [logger_keylime] is about all of the project's packages.
_PACKAGES = ("keylime", "keylime_agent", "keylime_registrar", "keylime_tenant", "keylime_verifier")
_DEFAULT_FORMAT = "%(asctime)s.%(msecs)03d - %(name)s - %(levelname)s - %(message)s"
_DEFAULT_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
# Fields that format strings of existing files name and nobody fills.
_FORMAT_DEFAULTS = {"reqidf": ""}

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0xD800, 0xE000))
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _CONTROLS}
_ESCAPES_BUT_NEWLINE = {code: text for code, text in _ESCAPES.items() if code != ord("\n")}

_ExceptionInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


@dataclass(frozen=True, slots=True)
class LogPlan:
    """What logging.conf asks for: the shape of lines and the least level by logger name ("" is the root)."""

    format: str = _DEFAULT_FORMAT
    date_format: str = _DEFAULT_DATE_FORMAT
    output_level: str = "NOTSET"
    levels: Mapping[str, str] | None = None


class LineFormatter(logging.Formatter):
    """One line per message: control characters are escaped, the lines of tracebacks are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).translate(_ESCAPES)

    def formatException(self, ei: _ExceptionInfo) -> str:
        # The text of an exception may come from a peer too; indented, no part of it looks like a message.
        text = super().formatException(ei).translate(_ESCAPES_BUT_NEWLINE)
        return textwrap.indent(text, "    ", lambda _: True)

    def format(self, record: logging.LogRecord) -> str:
        # The text that another handler made of the exception is kept in the record; it is not ours.
        record.exc_text = None
        return super().format(record)


def setup(
    component: str,
    environ: Mapping[str, str],
    *,
    stream: TextIO | None = None,
    etc: Path = Path("/etc/keylime"),
    usr_etc: Path = Path("/usr/etc/keylime"),
) -> logging.Logger:
    """Configure the root logger from logging.conf; the component's own logger. Raises ConfigError.

    Calling it again replaces the former set-up.
    """
    settings = load_settings("logging", environ=environ, etc=etc, usr_etc=usr_etc)
    _install(plan_logging(settings), stream or sys.stdout)
    for warning in settings.warnings:
        logging.getLogger("keylime.config").warning("%s", warning)
    return logging.getLogger(f"keylime.{component}")


def init_logging(name: str) -> logging.Logger:
    """The logger `keylime.<name>`; in a process that has no logging yet, lines go to standard output."""
    if not logging.getLogger().handlers:
        _install(LogPlan(levels={"": "INFO"}), sys.stdout)
    return logging.getLogger(f"keylime.{name}")


def plan_logging(settings: Settings) -> LogPlan:
    """The settings of logging.conf as a plan. Raises ConfigError."""
    format_ = settings.text("format", "formatter_formatter")
    date_format = settings.text("datefmt", "formatter_formatter")
    _try_format(format_, date_format, settings.source("format", "formatter_formatter"))
    levels = {"": settings.text("level", "logger_root")}
    level = settings.text("level", "logger_keylime")
    levels |= dict.fromkeys(_PACKAGES, level)
    levels |= dict(_single_loggers(settings.extra))
    return LogPlan(format_, date_format, settings.text("level", "handler_consoleHandler"), levels)


def _single_loggers(extra: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
    """Name and level from sections [logger_NAME] beyond the usual two."""
    for (section, option), text in extra.items():
        if not section.startswith("logger_") or option != "level":
            continue
        if text not in LEVELS:
            raise ConfigError(
                f"logging.conf: [{section}] level = {text!r}: expected one of {', '.join(LEVELS)}"
            )
        yield extra.get((section, "qualname"), section.removeprefix("logger_")), text


def _try_format(format_: str, date_format: str, source: str) -> None:
    record = logging.LogRecord("keylime", logging.INFO, __file__, 1, "trial", None, None)
    try:
        LineFormatter(format_, date_format, defaults=_FORMAT_DEFAULTS).format(record)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{source}: [formatter_formatter] format cannot be used: {error}") from error


class _Output(logging.StreamHandler[TextIO]):
    """Where lines go; remembers which loggers were given a level, for the set-up that comes after it."""

    def __init__(self, stream: TextIO, plan: LogPlan) -> None:
        super().__init__(stream)
        self.setFormatter(LineFormatter(plan.format, plan.date_format, defaults=_FORMAT_DEFAULTS))
        self.setLevel(plan.output_level)
        self.named = tuple(plan.levels or ())


def _install(plan: LogPlan, stream: TextIO) -> None:
    root = logging.getLogger()
    for former in [found for found in root.handlers if isinstance(found, _Output)]:
        root.removeHandler(former)
        for name in former.named:
            logging.getLogger(name).setLevel(logging.NOTSET)
    root.addHandler(_Output(stream, plan))
    for name, level in (plan.levels or {}).items():
        logging.getLogger(name).setLevel(level)
