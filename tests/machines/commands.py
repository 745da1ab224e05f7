"""Commands as the documentation prints them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks_of(page: str, heading: str) -> list[str]:
    """The blocks of shell commands below a heading, up to the next one of its level. Raises LookupError."""
    text = (ROOT / page).read_text("utf-8")
    level = heading.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.DOTALL | re.MULTILINE
    )
    if found is None:
        raise LookupError(f"{page} has no heading {heading!r}")
    return re.findall(r"^```sh\n(.*?)^```$", found[1], re.DOTALL | re.MULTILINE)
