"""What `keylime_agent --check` prints with --json, as types; the published JSON Schema is made of these.

`python -m keylime_agent.json_documents` writes it.
"""

from keylime.checkup import Examination
from keylime.documents.published_schema import Documents, published_schema

DOCUMENTS: Documents = {"check": (Examination,)}
"""By the flag that asks for it; `keylime_push_model_agent` prints the same."""


def text() -> str:
    """The published file."""
    return published_schema("keylime_agent", DOCUMENTS)


if __name__ == "__main__":
    print(text(), end="")
