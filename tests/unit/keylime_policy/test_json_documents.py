"""The published schema of what `keylime-policy --json` prints: as the types say it, for every command."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema_rs

from keylime_policy.arguments import build_parser
from keylime_policy.json_documents import DOCUMENTS, text

PUBLISHED = Path("docs/reference/keylime-policy.schema.json")


def with_json(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The commands that have the flag."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                if "--json" in inner._option_string_actions:
                    yield name
                yield from with_json(inner)


def test_the_published_schema_is_that_of_the_types() -> None:
    assert PUBLISHED.read_text() == text(), f"python -m keylime_policy.json_documents {PUBLISHED}"


def test_it_is_a_json_schema_with_a_document_for_every_command() -> None:
    schema = json.loads(text())
    jsonschema_rs.meta.validate(schema)
    assert set(DOCUMENTS) == set(with_json(build_parser(["example"])))
    assert {*DOCUMENTS, "failed"} <= set(schema["$defs"])
