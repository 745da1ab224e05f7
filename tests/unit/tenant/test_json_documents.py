"""The published schema of what `--json` prints: as the types say it, for every command."""

import json
from pathlib import Path

import jsonschema_rs

from keylime_tenant.catalogue import COMMANDS
from keylime_tenant.json_documents import DOCUMENTS, text

PUBLISHED = Path("docs/reference/keylime_tenant.schema.json")


def test_the_published_schema_is_that_of_the_types() -> None:
    assert PUBLISHED.read_text() == text(), f"python -m keylime_tenant.json_documents {PUBLISHED}"


def test_it_is_a_json_schema_with_a_document_for_every_command() -> None:
    schema = json.loads(text())
    jsonschema_rs.meta.validate(schema)
    assert set(DOCUMENTS) == set(COMMANDS)
    assert set(COMMANDS) | {"failed"} <= set(schema["$defs"])
