"""The published schema of what `keylime_agent --check --json` prints: as the types say it."""

import json
from pathlib import Path

import jsonschema_rs

from keylime.checkup import bad, document, ok, unknown, warning
from keylime_agent.json_documents import DOCUMENTS, text
from tests.printed_documents import demand_schema

PUBLISHED = Path("docs/reference/keylime_agent.schema.json")


def test_the_published_schema_is_that_of_the_types() -> None:
    assert PUBLISHED.read_text() == text(), f"python -m keylime_agent.json_documents {PUBLISHED}"
    jsonschema_rs.meta.validate(json.loads(text()))


def test_whatever_is_found_is_a_document_of_it() -> None:
    found = [ok("a", "b"), bad("c", "d", "e"), warning("f", "g"), unknown("h", "i", "j")]
    demand_schema("keylime_agent", DOCUMENTS, "check", document(found))
    demand_schema("keylime_agent", DOCUMENTS, "check", document([]))
    demand_schema("keylime_agent", DOCUMENTS, "check", {"error": "x"}, failed=True)
