"""What the manual is made of: no page is lost, and pages that are made say all that there is to say."""

import html
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.machines.commands import TYPED, blocks_of

ROOT = Path(__file__).parents[3]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
PROGRAMS = ("registrar", "verifier", "agent")


@pytest.fixture(scope="module")
def tools() -> Iterator[dict[str, ModuleType]]:
    places = [str(ROOT / "packaging" / name) for name in ("manual", "tools")]
    before = list(sys.path)
    sys.path[:0] = places
    try:
        yield {
            name: importlib.import_module(name)
            for name in ("api_pages", "apis", "collect", "parsers", "program_pages")
        }
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def manual(tools: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("manual") / "pages"
    tools["collect"].collect(target)
    return target


def test_every_page_is_in_the_contents_once(manual: Path) -> None:
    listed: list[str] = []
    for page in manual.rglob("*.md"):
        for tree in re.findall(r"```{toctree}\n(.*?)\n```", page.read_text("utf-8"), re.DOTALL):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed += [(page.parent / name).relative_to(manual).as_posix() for name in names]
    pages = {page.relative_to(manual).with_suffix("").as_posix() for page in manual.rglob("*.md")}
    assert sorted(listed) == sorted(pages - {"index"})


def test_the_contents_name_parts_for_operators_before_those_for_engineers() -> None:
    contents = yaml.safe_load((ROOT / "packaging" / "manual" / "contents.yaml").read_text("utf-8"))
    assert list(contents) == ["Get started", "Installation", "Operation", "Reference", "For engineers"]


def test_links_lead_to_pages_where_they_are_in_the_manual(manual: Path) -> None:
    assert "](security.md#what-no-verifier-can-see)" in (manual / "ima.md").read_text("utf-8")
    assert "](adr/0014-version-numbers.md)" in (manual / "contributing.md").read_text("utf-8")
    targets = [
        (page.parent / link, page.name)
        for page in manual.rglob("*.md")
        for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text("utf-8"))
    ]
    assert [(str(target), name) for target, name in targets if not target.is_file()] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_page_of_an_api_has_every_call_and_every_type(program: str, manual: Path) -> None:
    document: dict[str, Any] = importlib.import_module("apis").documents()[program]
    headings = re.findall(r"^### (.*)$", (manual / f"reference/api/{program}.md").read_text("utf-8"), re.M)
    calls = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert sorted(headings) == sorted([*calls, *document["components"]["schemas"]])


def test_a_call_is_told_with_rights_parameters_body_and_answers(manual: Path) -> None:
    agents = (manual / "reference/api/registrar.md").read_text("utf-8")
    shown = agents.partition("### GET /v2.6/agents/{agent_id}\n")[2].partition("\n### ")[0]
    assert "The keys and the address of one agent. For administrators." in shown
    assert "| `agent_id` | path, needed |" in shown
    assert "Answered with 200: `results` is [RegisteredAgent](#registeredagent)." in shown
    assert "400, 404, 503: [Refused](#refused)" in shown
    kind = agents.partition("### RegisteredAgent\n")[2].partition("\n### ")[0]
    assert "| `ekcert` | string or null | optional |" in kind
    assert "| `regcount` | integer | needed |" in kind


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_each_program_has_a_page_with_all_its_options(
    script: str, manual: Path, tools: dict[str, ModuleType]
) -> None:
    page = (manual / "programs" / f"{script}.md").read_text("utf-8")
    assert "## Exit status" in page or "## Signals and exit status" in page
    assert "<!-- options" not in page
    options = re.findall(r"--[a-z][\w-]*", html.unescape("".join(re.findall(r"<code>.*?</code>", page))))
    assert set(options) == set(_options(tools["parsers"].parser_of(script, SCRIPTS[script])))


def _options(parser: Any) -> Iterator[str]:
    for action in parser._actions:
        if action.help == "==SUPPRESS==":
            continue
        yield from (name for name in action.option_strings if name.startswith("--"))
        for child in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            yield from _options(child)


@pytest.mark.parametrize(("page", "headings"), TYPED.items())
def test_what_is_typed_on_machines_stands_there(page: str, headings: dict[str, int]) -> None:
    """The machines themselves (tests/machines) take too long to notice."""
    assert {heading: len(blocks_of(page, heading)) for heading in headings} == headings
