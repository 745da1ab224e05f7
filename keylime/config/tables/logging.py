"""Options of logging.conf; sections `[logger_NAME]` beyond these may be added for single loggers."""

from functools import partial

from keylime.config.model import ComponentTable, Kind, Option

LEVELS = ("DEBUG", "INFO", "WARNING", "WARN", "ERROR", "CRITICAL", "FATAL", "NOTSET")

_HANDLER_HELP = "Messages go to standard output."
_ignored = partial(Option, ignored=True)

LOGGING = ComponentTable(
    "logging",
    "Keylime logging",
    (
        Option("logging", "version", Kind.TEXT, "2.6", "Format of this file."),
        Option(
            "formatter_formatter",
            "format",
            Kind.TEXT,
            "%(asctime)s.%(msecs)03d - %(name)s - %(levelname)s - %(message)s",
            "Shape of a line, in the notation of Python's logging module.",
        ),
        Option(
            "formatter_formatter",
            "output",
            Kind.TEXT,
            "text",
            "Lines of text in the shape above, or one JSON object for each message (json).",
            choices=("text", "json"),
        ),
        Option("formatter_formatter", "datefmt", Kind.TEXT, "%Y-%m-%d %H:%M:%S", "Shape of the time."),
        Option(
            "handler_consoleHandler",
            "level",
            Kind.TEXT,
            "NOTSET",
            "Least level that reaches standard output, whatever the loggers let through.",
            choices=LEVELS,
        ),
        Option("logger_root", "level", Kind.TEXT, "INFO", "Least level of libraries.", choices=LEVELS),
        Option("logger_keylime", "level", Kind.TEXT, "INFO", "Least level of Keylime.", choices=LEVELS),
        _ignored(
            "logger_keylime", "qualname", Kind.TEXT, "keylime", "The logger that this section is about."
        ),
        # The rest of what the standard library's format demands; there is one handler, standard output.
        _ignored("loggers", "keys", Kind.LIST, ("root", "keylime"), "Sections of loggers."),
        _ignored("handlers", "keys", Kind.LIST, ("consoleHandler",), "Sections of handlers."),
        _ignored("formatters", "keys", Kind.LIST, ("formatter",), "Sections of formatters."),
        _ignored("logger_root", "handlers", Kind.TEXT, "consoleHandler", _HANDLER_HELP),
        _ignored("logger_keylime", "handlers", Kind.TEXT, "", _HANDLER_HELP),
        _ignored("handler_consoleHandler", "class", Kind.TEXT, "StreamHandler", _HANDLER_HELP),
        _ignored("handler_consoleHandler", "formatter", Kind.TEXT, "formatter", _HANDLER_HELP),
        _ignored("handler_consoleHandler", "args", Kind.TEXT, "(sys.stdout,)", _HANDLER_HELP),
    ),
    open_sections=("logger_", "handler_", "formatter_"),
)
