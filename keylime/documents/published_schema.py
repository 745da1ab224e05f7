"""The JSON Schema of what a program prints with `--json`, made of the types that it is printed from."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

Documents = Mapping[str, tuple[Any, ...]]
"""The types of the document of each command; one that has several is one of them."""


class Failure(msgspec.Struct, frozen=True):
    """What ended before it had a result, wrong usage as well: the line that is on stderr, too."""

    error: str


Count = Annotated[int, msgspec.Meta(ge=0)]


def published_schema(program: str, documents: Documents, failed: tuple[Any, ...] = (Failure,)) -> str:
    """The text of the file: in `$defs` a document for each command by its word, `failed`, and all types."""
    kinds = {**documents, "failed": failed}
    flat = [kind for group in kinds.values() for kind in group]
    shapes, types = msgspec.json.schema_components(flat, ref_template="#/$defs/{name}")
    shape = iter(shapes)
    commands = {}
    for name, group in kinds.items():
        choices = [next(shape) for _ in group]
        commands[name] = choices[0] if len(choices) == 1 else {"anyOf": choices}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Documents of {program} --json",
        "description": "The document of COMMAND fits $defs/COMMAND when the exit status is 0. With another "
        "status it fits either that or $defs/failed. Members may be added.",
        "$defs": {**commands, **types},
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
