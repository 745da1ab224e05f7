"""Modules that say that they are pure are under the contract that holds them to it, and keep to it."""

import ast
import functools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRACT = "what is said to be pure is pure"
CLAIM = re.compile(r"(?:^|[\s:])Pure[.,:;]|\bDecisions only\b|\bpure bookkeeping\b|`\w+` is pure")
OPENING = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "unlink", "mkdir", "iterdir"}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the project by its dotted name."""
    found = {}
    for folder in ("keylime", *(f"{one}/" for one in ("agent", "registrar", "tenant", "verifier"))):
        start = ROOT / folder
        for path in start.rglob("*.py"):
            parts = path.relative_to(ROOT if folder == "keylime" else start).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            if "migrations" not in parts and name.startswith("keylime"):
                found[name] = ast.parse(path.read_text())
    return found


@functools.cache
def held() -> list[str]:
    """The modules and packages under the contract."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = (one for one in document["tool"]["importlinter"]["contracts"] if one["name"] == CONTRACT)
    assert not contract.get("allow_indirect_imports", False)
    names: list[str] = contract["source_modules"]
    return names


def is_held(name: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in held())


def test_whoever_claims_to_be_pure_is_held_to_it() -> None:
    claims = [name for name, tree in modules().items() if CLAIM.search(ast.get_docstring(tree) or "")]
    assert len(claims) > 20
    assert [name for name in claims if not is_held(name)] == []


def test_what_is_held_to_it_exists_and_opens_no_file() -> None:
    known = modules()
    assert [one for one in held() if one not in known] == []
    assert held() == sorted(held())
    opening = [
        f"{name}:{node.lineno}"
        for name, tree in known.items()
        if is_held(name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in OPENING
    ]
    assert opening == []
