"""Docstrings say what is raised by names that there are, and say of exceptions what they mean."""

import ast
import builtins
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("agent", "registrar", "tenant", "verifier")
OTHERS = {"HTTPError", "HTTPInputError", "IntegrityError", "ServerFingerprintMismatch"}  # of libraries
BUILT_IN = {
    name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, BaseException)
}
_NAME = r"[A-Z]\w+"
_RAISES = re.compile(rf"\bRaises ({_NAME}(?:(?:,? and|,? or|,) {_NAME})*)")


@functools.cache
def nodes(folder: str) -> list[tuple[str, ast.AST]]:
    """All that has a docstring, with where it is."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
    return [
        (f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", node)
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds)
    ]


def exceptions(folder: str, known: set[str]) -> dict[str, ast.ClassDef]:
    """The exceptions in a folder, where those of other places are `known`."""
    classes = {node.name: node for _, node in nodes(folder) if isinstance(node, ast.ClassDef)}
    found: dict[str, ast.ClassDef] = {}
    while more := {
        name: node
        for name, node in classes.items()
        if name not in found
        and any(ast.unparse(base).rpartition(".")[2] in (known | found.keys()) for base in node.bases)
    }:
        found |= more
    return found


@functools.cache
def of_the_core() -> set[str]:
    """What anybody may raise."""
    return BUILT_IN | OTHERS | exceptions("keylime", BUILT_IN | OTHERS).keys()


@pytest.mark.parametrize("folder", ["keylime", *PROGRAMS])
def test_what_is_said_to_be_raised_can_be_raised_there(folder: str) -> None:
    known = of_the_core() | exceptions(folder, of_the_core()).keys()
    unknown = [
        f"{place}: {name}"
        for place, node in nodes(folder)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module)
        for names in _RAISES.findall(ast.get_docstring(node) or "")
        for name in re.findall(_NAME, names)
        if name not in known
    ]
    assert unknown == []


@pytest.mark.parametrize("folder", ["keylime", *PROGRAMS])
def test_each_exception_says_what_it_means_in_a_first_sentence(folder: str) -> None:
    found = exceptions(folder, of_the_core())
    assert found
    said = {name: (ast.get_docstring(node) or "").partition("\n")[0] for name, node in found.items()}
    assert [name for name, text in said.items() if not text.endswith(".") or name in text] == []
