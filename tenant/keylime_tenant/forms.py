"""In which form results are printed."""

import enum


class Form(enum.Enum):
    """`SCRIPT` are the lines that existing scripts search; it has no word: programs get it unasked."""

    SCRIPT = ""
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    NAME = "name"

    @property
    def is_for_people(self) -> bool:
        """Whether a person reads it, in lines of a terminal."""
        return self in (Form.TABLE, Form.WIDE)

    @property
    def is_document(self) -> bool:
        """Whether stdout belongs to a document, with everything else on stderr."""
        return self in (Form.JSON, Form.JSONL, Form.NAME)


WORDS = tuple(form.value for form in Form if form.value)
