"""Files that options named, as they were read, and who is to blame for what is wrong with them. Pure."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from keylime.documents.encodings import not_utf8
from keylime.documents.places import line_of, place_in_message
from keylime.documents.strict_json import BYTE_ORDER_MARK
from keylime.errors import ConfigError, KeylimeError
from keylime.ima.allowlist import listed_text


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The content of a file, the option that named it, and its path."""

    option: str
    path: str
    content: bytes

    @property
    def text(self) -> str:
        """The content as UTF-8, without a byte order mark in front. Raises ConfigError.

        In front of JSON it is refused, as a verifier does. Names in allowlists may be no UTF-8.
        """
        try:
            text = listed_text(self.content)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.option} {self.path}: {not_utf8(error)}") from error
        marked, text = text.startswith(BYTE_ORDER_MARK), text.removeprefix(BYTE_ORDER_MARK)
        if marked and text.lstrip().startswith("{"):
            raise ConfigError(
                f"{self.option} {self.path}: begins with a byte order mark: save it as UTF-8 without one"
            )
        return text

    def blamed(self) -> AbstractContextManager[None]:
        """Has a KeylimeError name this option and file."""
        return blaming(self.option, self.path)


@contextmanager
def blaming(option: str, path: str | Path, document: str | None = None) -> Iterator[None]:
    """Puts the option and file that were at fault before the reason of a KeylimeError.

    With `document`, the JSON text of the file, also the line of the member that the reason begins with.
    """
    try:
        yield
    except KeylimeError as error:
        place = () if document is None else place_in_message(str(error))
        line = line_of(document, place) if document is not None and place else None
        where = f"{option} {path}" if line is None else f"{option} {path} line {line}"
        raise ConfigError(f"{where}: {error}") from error
