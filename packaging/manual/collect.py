"""Collects the sources of the manual in a directory, for Sphinx: what `make docs` does first.

    python packaging/manual/collect.py DIRECTORY

Pages are those of docs/, some of the project's root, and those that are made here of each daemon's routes,
which api.md leads to where it has the line `<!-- calls -->`. A program's page in docs/programs/ has the line
`<!-- options: PROGRAM -->`, in whose place comes what its argument parser says. Links are led to the pages.
"""

import json
import posixpath
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "packaging" / "tools"))

from api_pages import api_page  # noqa: E402
from apis import documents  # noqa: E402
from parsers import parser_of  # noqa: E402
from program_pages import options_of  # noqa: E402

# Pages of the project's root that are pages of the manual as well.
_OF_THE_ROOT = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
_ELSEWHERE = {"README.md": "index.md", "LICENSE": "LICENSE.txt", "docs/adr": "adr/index.md"}
_OPTIONS = re.compile(r"^<!-- options: (\S+) -->$", re.MULTILINE)
_CALLS = "<!-- calls -->"
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def collect(target: Path) -> None:
    """Everything, in place of what was there."""
    shutil.rmtree(target, ignore_errors=True)
    for page in sorted((ROOT / "docs").rglob("*.md")):
        place = page.relative_to(ROOT / "docs").as_posix()
        _write(target / place, _led(page.read_text("utf-8"), f"docs/{place}", place))
    for source, place in _OF_THE_ROOT.items():
        _write(target / place, _led((ROOT / source).read_text("utf-8"), source, place))
    for schema in sorted((ROOT / "docs" / "reference").glob("*.schema.json")):
        _write(target / "reference" / schema.name, schema.read_text("utf-8"))
    shutil.copytree(ROOT / "docs" / "images", target / "images")
    shutil.copy(ROOT / "LICENSE", target / "LICENSE.txt")
    apis = documents()
    for program, document in apis.items():
        directory = target / "reference" / "api"
        _write(directory / f"{program}.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        _write(directory / f"{program}.md", api_page(program, document))
    calls = ", ".join(f"[{program}](reference/api/{program}.md)" for program in apis)
    _replace(target / "api.md", _CALLS, f"All calls: {calls}.")
    _add_options(target / "programs")
    _add_contents(target)


def _led(text: str, source: str, place: str) -> str:
    """A page's text with its links as they are from its place in the manual."""

    def lead(link: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        found = _OF_THE_ROOT.get(file) or _ELSEWHERE.get(file) or file.removeprefix("docs/")
        return posixpath.relpath(found, posixpath.dirname(place) or ".")

    return _LINK.sub(lead, text)


def _replace(page: Path, mark: str, text: str) -> None:
    before = page.read_text("utf-8")
    if mark not in before:
        raise SystemExit(f"{page.name} has no line {mark}")
    page.write_text(before.replace(mark, text), "utf-8")


def _add_options(directory: Path) -> None:
    """Fills in the pages of programs. Raises SystemExit unless each program has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    scripts: Mapping[str, str] = project["scripts"]
    filled = []
    for page in sorted(directory.glob("*.md")):
        text = page.read_text("utf-8")
        filled += _OPTIONS.findall(text)
        page.write_text(
            _OPTIONS.sub(lambda found: options_of(parser_of(found[1], scripts[found[1]])), text), "utf-8"
        )
    if sorted(filled) != sorted(scripts):
        raise SystemExit(
            f"docs/programs: pages have the options of {filled}, and programs are {sorted(scripts)}"
        )


def _add_contents(target: Path) -> None:
    """Tables of contents, in the first page and in one for each folder that is a chapter."""
    parts: Mapping[str, Sequence[str | Mapping[str, str]]] = yaml.safe_load(
        (ROOT / "packaging" / "manual" / "contents.yaml").read_text("utf-8")
    )
    index = (target / "index.md").read_text("utf-8")
    for part, chapters in parts.items():
        pages = []
        for chapter in chapters:
            if isinstance(chapter, str):
                pages.append(chapter)
                continue
            for folder, title in chapter.items():
                inside = sorted(page.stem for page in (target / folder).glob("*.md"))
                _write(target / folder / "index.md", f"# {title}\n{_tree(inside)}")
                pages.append(f"{folder}/index")
        index += _tree(pages, f":hidden:\n:caption: {part}\n")
    (target / "index.md").write_text(index, "utf-8")


def _tree(pages: Sequence[str], options: str = "") -> str:
    lines = "\n".join(pages)
    return f"\n```{{toctree}}\n:maxdepth: 1\n{options}\n{lines}\n```\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
