"""The one place that writes for the operator, in the form that was asked for."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from keylime_tenant.forms import Form
from keylime_tenant.terminal import Terminal, wants_colours

JsonObject = Mapping[str, Any]


class Output:
    """Lines that scripts search, lines for people, or a document for programs.

    In `Form.SCRIPT` results go through the `keylime.tenant` logger to stdout, in the words that existing
    scripts search. For people stdout has the results, and stderr what happens on the way. For programs stdout
    gets the document and nothing else.
    """

    def __init__(
        self,
        log: logging.Logger,
        form: Form,
        *,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.form = form
        self._log = log
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self.terminal = _terminal(self._stdout, environ, is_wide=form is Form.WIDE)
        self._error_terminal = _terminal(self._stderr, environ)
        self._document: object = None
        self._rows: Sequence[object] | None = None
        self._names: Sequence[str] = ()
        self._has_passing_line = False
        self._is_held = False
        self._is_followed = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the screen belongs to somebody else, nothing is written on it."""
        self._clear()
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def info(self, message: str, *values: object) -> None:
        """One line of the log at INFO, which people do not miss."""
        if not self.form.is_for_people:
            self._log.info(message, *values)

    def said(self, message: str, *values: object) -> None:
        """One line of the log at INFO that people want to read, too."""
        if self.form.is_for_people:
            self.lines([message % values if values else message])
        else:
            self._log.info(message, *values)

    def waiting(self, message: str, *values: object) -> None:
        """What is being waited for: a line that passes on a terminal, and stays elsewhere."""
        if not self.form.is_for_people:
            self._log.info(message, *values)
            return
        text = message % values if values else message
        if self._is_held:
            return
        self._clear()
        # A line that wraps could not be taken back.
        passes = self._error_terminal.width is not None and len(text) < self._error_terminal.width
        print(text, end="" if passes else "\n", file=self._stderr, flush=True)
        self._has_passing_line = passes

    def waited(self, message: str, *values: object) -> None:
        """What was being waited for has come: its line goes, or `message` says so where lines stay."""
        if self._has_passing_line:
            self._clear()
        elif not self.form.is_for_people:
            self._log.info(message, *values)
        elif not self._is_held:
            print(message % values if values else message, file=self._stderr, flush=True)

    def warning(self, message: str, *values: object) -> None:
        """One line of the log at WARNING."""
        if not self.form.is_for_people:
            self._log.warning(message, *values)
            return
        if self._is_held:
            return
        self._clear()
        head = self._error_terminal.paint("warning:", "doubtful")
        print(f"{head} {message % values if values else message}", file=self._stderr, flush=True)

    def error(self, message: str, *values: object) -> None:
        """One line of the log at ERROR."""
        self._log.error(message, *values)

    def result(
        self, document: object, *, rows: Sequence[object] | None = None, names: Sequence[str] | None = None
    ) -> None:
        """The result for programs; a later one replaces it, `finish` prints it.

        `rows` are its parts, one for each line of JSON Lines, and `names` the names of what it is about.
        """
        self._document, self._rows = document, rows
        if names is not None:
            self._names = names

    def about(self, name: str) -> None:
        """What the command is about, whose name is the answer where only names are wanted."""
        self._names = (name,)

    def failed(self, reason: str) -> None:
        """Makes `reason` the result when the command ended before it had one."""
        self._clear()
        self._names = ()
        if self._document is None:
            self._document = {"error": reason}

    def literal(self, value: object) -> None:
        """`value` on stdout, outside the log: JSON after its heading, answers as the text of a dictionary."""
        if self.form is Form.SCRIPT:
            print(value, file=self._stdout, flush=True)

    def listing(
        self,
        heading: str,
        document: JsonObject,
        *,
        rows: Sequence[object] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """`heading` and, on the next line, `document` as JSON, for scripts; it is also the result."""
        self.info("%s", heading)
        self.literal(json.dumps(document))
        self.result(document, rows=rows, names=names)

    def show(self, make: Callable[[Terminal], Iterable[str]]) -> None:
        """The lines that `make` makes for a person; nothing for programs."""
        if self.form.is_for_people:
            self.lines(make(self.terminal))

    def lines(self, lines: Iterable[str]) -> None:
        """`lines` on stdout."""
        if self._is_held:
            return
        self._clear()
        for line in lines:
            print(line, file=self._stdout)
        self._stdout.flush()

    def followed(self, row: object, lines: Iterable[str]) -> None:
        """One of several results that come one after the other: a line of JSON, or `lines`, at once."""
        self._is_followed, self._document, self._rows = True, None, None
        if self.form.is_document:
            self._clear()
            print(json.dumps(row), file=self._stdout, flush=True)
        else:
            self.lines(lines)

    def announce(self, line: str) -> None:
        """`line` for who has started the program, and in no log: on stderr where stdout is a document's."""
        self._clear()
        print(line, file=self._stderr if self.form.is_document else self._stdout, flush=True)

    def finish(self) -> None:
        """The document for programs."""
        self._clear()
        if self._is_followed and self._document is None:
            return
        document = {} if self._document is None else self._document
        if self.form is Form.JSON:
            print(json.dumps(document), file=self._stdout)
        elif self.form is Form.JSONL:
            for row in [document] if self._rows is None else self._rows:
                print(json.dumps(row), file=self._stdout)
        elif self.form is Form.NAME:
            for name in self._names:
                print(name, file=self._stdout)

    def _clear(self) -> None:
        if self._has_passing_line:
            print("\r\x1b[K", end="", file=self._stderr, flush=True)
            self._has_passing_line = False


class OutputHandler(logging.Handler):
    """Warnings of the libraries in the words that people get of us."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.warning("%s", record.getMessage())


def _terminal(stream: TextIO, environ: Mapping[str, str], *, is_wide: bool = False) -> Terminal:
    if not stream.isatty():
        return Terminal(is_wide=is_wide)
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    given = environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit():
        columns = int(given)
    return Terminal(columns or 80, wants_colours(environ, is_terminal=True), is_wide)
