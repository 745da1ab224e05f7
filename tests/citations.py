"""What comments and docstrings of the code cite: documents, their sections, and ids of their rows."""

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DECISIONS = ROOT / "docs" / "reference" / "decisions.md"
SOURCES = ("keylime", "agent", "registrar", "tenant", "verifier", "tests", "benchmarks")

_ROW = re.compile(r"^\| ([TDC]\d+) \|", re.MULTILINE)
# Q, I, ... are rows of docs/attacks.md, T, D, C those of docs/reference/decisions.md.
_ID = re.compile(r"(?<![\w/#.-])[QIMRYNSVLHPTDC]\d{1,2}(?![\w-])")
_DOCUMENT = re.compile(r"docs/[\w/.-]+\.md(?:,? (\d+(?:\.\d+)*)(?: and (\d+(?:\.\d+)*))?)?")
_HEADING = re.compile(r"^#+ (\d+(?:\.\d+)*)\.? ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Remark:
    """A comment, or a string that stands for itself as docstrings do."""

    place: str
    text: str


def remarks(folders: tuple[str, ...] = SOURCES) -> Iterator[Remark]:
    """Every comment and docstring of the code below `folders`."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from _remarks_of(path)


def _remarks_of(path: Path) -> Iterator[Remark]:
    source = path.read_text("utf-8")
    begins_statement = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_docstring = token.type == tokenize.STRING and begins_statement and '"""' in token.string
        if token.type == tokenize.COMMENT or is_docstring:
            yield Remark(f"{path.relative_to(ROOT)}:{token.start[0]}", token.string)
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            begins_statement = True
        elif token.type not in (tokenize.NL, tokenize.COMMENT):
            begins_statement = False


def ids_of_decisions(page: str) -> list[str]:
    """The ids of the rows of docs/reference/decisions.md."""
    return _ROW.findall(page)


def cited_ids(text: str) -> list[str]:
    """The ids of attacks, properties and decisions that a remark names."""
    return _ID.findall(text)


def cited_documents(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """The documents that a remark names, with the numbers of their sections."""
    unfolded = " ".join(line.strip().removeprefix("#").strip() for line in text.splitlines())
    return [
        (re.sub(r",? .*", "", match[0]), tuple(number for number in match.groups() if number))
        for match in _DOCUMENT.finditer(unfolded)
    ]


def sections(document: Path) -> set[str]:
    """The numbers of the sections of a document."""
    return set(_HEADING.findall(document.read_text("utf-8")))
