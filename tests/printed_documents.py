"""What programs print with --json, held to the published schemas and to the types that these are made of."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec

from keylime.documents.published_schema import Documents, Failure

REFERENCE = Path(__file__).parent.parent / "docs/reference"


@functools.cache
def published(program: str) -> dict[str, Any]:
    """The published schema of a program's documents."""
    schema: dict[str, Any] = json.loads((REFERENCE / f"{program}.schema.json").read_text())
    return schema


def demand_schema(
    program: str,
    documents: Documents,
    command: str,
    document: Any,
    *,
    failed: bool = False,
    failures: tuple[Any, ...] = (Failure,),
) -> None:
    """The document is one that `command` is said to print, or one of those that did not come so far."""
    choices = [{"$ref": f"#/$defs/{name}"} for name in (command, *(("failed",) if failed else ()))]
    schema = {"anyOf": choices, "$defs": published(program)["$defs"]}
    jsonschema_rs.validator_for(schema).validate(document)
    kinds = (*documents[command], *(failures if failed else ()))
    assert _documented(document, kinds), (command, document)


def _documented(document: Any, kinds: Sequence[Any]) -> bool:
    """Whether every member of `document` is a member of one of these types."""
    for kind in kinds:
        try:
            known = msgspec.to_builtins(msgspec.convert(document, kind))
        except msgspec.ValidationError:
            continue
        if _members(document) <= _members(known):
            return True
    return False


def _members(value: Any, place: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The places of all members in a document."""
    if isinstance(value, dict):
        inner = [_members(one, (*place, key)) for key, one in value.items()]
        return {(*place, key) for key in value}.union(*inner)
    if isinstance(value, list):
        return set().union(*(_members(one, (*place, "[]")) for one in value))
    return set()
