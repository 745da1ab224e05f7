"""The lines of logs: what logging.conf asks for, and each message as one line, for `keylime_logging`."""

import json
import logging
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TypeAlias

from keylime.config.settings import Settings
from keylime.config.tables.logging import LEVELS
from keylime.errors import ConfigError
from keylime.request_id import handled

# [logger_keylime] is about all of the project's packages.
_PACKAGES = ("keylime", "keylime_agent", "keylime_registrar", "keylime_tenant", "keylime_verifier")
DEFAULT_FORMAT = "%(asctime)s.%(msecs)03d - %(name)s - %(levelname)s - %(message)s"
DEFAULT_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
_REQUEST_FIELDS = ("%(request_id)", "%(reqid)", "%(reqidf)")
# What these are where no handler of ours has filled them, as when a format is tried.
_FORMAT_DEFAULTS = dict.fromkeys(("request_id", "reqid", "reqidf"), "")
# Priorities of syslog(3) for levels from the highest down.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0xD800, 0xE000))
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _CONTROLS}
_ESCAPES_BUT_NEWLINE = {code: text for code, text in _ESCAPES.items() if code != ord("\n")}
_ExceptionInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


@dataclass(frozen=True, slots=True)
class LogPlan:
    """What logging.conf asks for: the shape of lines and the least level by logger name ("" is the root)."""

    format: str = DEFAULT_FORMAT
    date_format: str = DEFAULT_DATE_FORMAT
    is_json: bool = False
    output_level: str = "NOTSET"
    levels: Mapping[str, str] | None = None


class JsonFormatter(logging.Formatter):
    """One JSON object on one line: time, level, logger, message; request id and traceback if there are."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id(record):
            fields["request_id"] = request_id
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class JournalFormatter(logging.Formatter):
    """What `inner` makes of a message, each line with its priority in front (sd-daemon(3))."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return textwrap.indent(self._inner.format(record), f"<{priority}>", lambda _: True)


class LineFormatter(logging.Formatter):
    """One line per message: control characters are escaped, the lines of tracebacks are indented.

    The id of the request that a message is about stands at its end, or where `format_` has it.
    """

    def __init__(self, format_: str, date_format: str = DEFAULT_DATE_FORMAT) -> None:
        super().__init__(format_, date_format, defaults=_FORMAT_DEFAULTS)
        self._places_request = any(field in format_ for field in _REQUEST_FIELDS)

    def formatMessage(self, record: logging.LogRecord) -> str:
        request_id = _request_id(record)
        told = f"(reqid={request_id})" if request_id else ""
        record.request_id, record.reqid, record.reqidf = request_id, request_id, told
        text = super().formatMessage(record)
        return (text if self._places_request or not told else f"{text} {told}").translate(_ESCAPES)

    def formatException(self, ei: _ExceptionInfo) -> str:
        # The text of an exception may come from a peer too; indented, no part of it looks like a message.
        text = super().formatException(ei).translate(_ESCAPES_BUT_NEWLINE)
        return textwrap.indent(text, "    ", lambda _: True)

    def format(self, record: logging.LogRecord) -> str:
        # The text that another handler made of the exception is kept in the record; it is not ours.
        record.exc_text = None
        return super().format(record)


def plan_logging(settings: Settings) -> LogPlan:
    """The settings of logging.conf as a plan. Raises ConfigError."""
    format_ = settings.text("format", "formatter_formatter")
    date_format = settings.text("datefmt", "formatter_formatter")
    _try_format(format_, date_format, settings.source("format", "formatter_formatter"))
    levels = {"": settings.text("level", "logger_root")}
    level = settings.text("level", "logger_keylime")
    levels |= dict.fromkeys(_PACKAGES, level)
    levels |= dict(_single_loggers(settings.extra))
    is_json = settings.text("output", "formatter_formatter") == "json"
    return LogPlan(format_, date_format, is_json, settings.text("level", "handler_consoleHandler"), levels)


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


def _request_id(record: logging.LogRecord) -> str:
    """The request that a message is about: what it says itself, or the one that is being handled."""
    said = getattr(record, "request_id", "")
    return said if isinstance(said, str) and said else handled()


def _try_format(format_: str, date_format: str, source: str) -> None:
    record = logging.LogRecord("keylime", logging.INFO, __file__, 1, "trial", None, None)
    try:
        LineFormatter(format_, date_format).format(record)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{source}: [formatter_formatter] format cannot be used: {error}") from error
