"""Comments and docstrings cite only what a reader can open, and only rows and sections that are there."""

import functools
import re
from pathlib import Path

import pytest

from tests.attacks.catalogue import PAGE, ids_of_rows
from tests.citations import (
    DECISIONS,
    ROOT,
    Remark,
    cited_documents,
    cited_ids,
    ids_of_decisions,
    remarks,
    sections,
)

# Documents by their bare names, numbers of sections without a document, and places outside the repository.
UNREADABLE = re.compile(r"(?<![\w/-])(?:rest-api|policies-and-logs|config-and-cli)\b(?!\.py)|§|\.\./shared")
PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


@functools.cache
def all_remarks() -> tuple[Remark, ...]:
    """Those of the whole code."""
    return tuple(remarks())


def test_there_is_something_to_look_at() -> None:
    assert sum(bool(cited_ids(remark.text)) for remark in all_remarks()) > 50
    assert sum(bool(cited_documents(remark.text)) for remark in all_remarks()) > 10


def test_each_cited_row_is_there() -> None:
    rows = {*ids_of_rows(PAGE.read_text("utf-8")), *ids_of_decisions(DECISIONS.read_text("utf-8"))}
    assert [
        (remark.place, row_id)
        for remark in all_remarks()
        for row_id in cited_ids(remark.text)
        if row_id not in rows
    ] == []


def test_each_cited_document_and_section_is_there() -> None:
    missing = [
        (remark.place, document, number)
        for remark in all_remarks()
        for document, numbers in cited_documents(remark.text)
        for number in (numbers or ("",))
        if not _has(ROOT / document, number)
    ]
    assert missing == []


def _has(document: Path, number: str) -> bool:
    return document.is_file() and (not number or number in sections(document))


def test_nothing_is_cited_that_a_reader_cannot_open() -> None:
    assert [
        remark.place
        for remark in all_remarks()
        if UNREADABLE.search(remark.text) and not remark.place.startswith("tests/house/test_citations.py")
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_documents_lead_somewhere(page: Path) -> None:
    targets = [target.partition("#") for target in LINK.findall(page.read_text("utf-8"))]
    assert [
        file + mark + anchor
        for file, mark, anchor in targets
        if not (page.parent / file).exists()
        or (anchor and anchor not in _anchors(page.parent / file if file else page))
    ] == []


def _anchors(page: Path) -> set[str]:
    """Those that GitHub and GitLab make of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_map_names_modules_that_are_there() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("## Where it is")[2]
    places = re.findall(r"`([\w/*.]+(?:\.py|/))`", table)
    assert len(places) > 50
    folders = (ROOT / "keylime", *ROOT.glob("*/keylime_*"))
    assert [
        place
        for place in places
        if not (ROOT / place).exists()
        and not any(list(folder.rglob(place.rstrip("/"))) for folder in folders)
    ] == []


def test_an_id_stands_for_one_thing() -> None:
    attacks, decisions = ids_of_rows(PAGE.read_text("utf-8")), ids_of_decisions(DECISIONS.read_text("utf-8"))
    assert set(attacks).isdisjoint(decisions)
    assert len(decisions) == len(set(decisions)) > 40


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('"""Over again (Q25, I33, T10)."""', ["Q25", "I33", "T10"]),
        ("# P1 to P5 of P-256, SHA-256, PCR 10, 0xF3, D-Bus, S_IS 5", ["P1", "P5"]),
        ("# see adr/C1 and C1-based, M1.5", ["M1"]),
    ],
)
def test_ids_are_found_in_remarks(text: str, ids: list[str]) -> None:
    assert cited_ids(text) == ids


def test_documents_are_found_across_lines_with_their_sections() -> None:
    text = '"""Files (docs/reference/rest-api.md, 8.2\n    and 6.7), docs/api.md.\n"""'
    assert cited_documents(text) == [("docs/reference/rest-api.md", ("8.2", "6.7")), ("docs/api.md", ())]
    assert cited_documents("# docs/reference/rest-api.md,\n# 2.3") == [
        ("docs/reference/rest-api.md", ("2.3",))
    ]


def test_remarks_are_comments_and_docstrings_and_not_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "some.py").write_text(
        '"""One."""\nx = """Not."""  # two\n\n\n'
        'def f() -> None:\n    """Three."""\n    g("four", """Not.""")\n'
    )
    monkeypatch.setattr("tests.citations.ROOT", tmp_path)
    assert list(remarks(("code",))) == [
        Remark("code/some.py:1", '"""One."""'),
        Remark("code/some.py:2", "# two"),
        Remark("code/some.py:6", '"""Three."""'),
    ]
