"""Agent identifiers: one check, before an id reaches a log, URL, file or query."""

import re
from typing import NewType

from keylime.errors import MalformedMessage

AgentId = NewType("AgentId", str)

_AGENT_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


def parse_agent_id(text: str) -> AgentId:
    """`text` as an agent id: 1 to 80 ASCII letters, digits, `_`, `.`, `-`, not starting with `.` or `-`.

    Raises MalformedMessage. The leading characters left out here could only be path or option tricks.
    """
    if not _AGENT_ID.fullmatch(text):
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise MalformedMessage(
            f"agent id {shown!r} is not valid: expected 1 to 80 characters of [A-Za-z0-9_.-]"
        )
    return AgentId(text)
