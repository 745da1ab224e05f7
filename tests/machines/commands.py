"""Commands as the documentation prints them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = "README.md"
TWO_MACHINES = "## Set it up on two machines in five minutes"
THREE_MACHINES = "docs/three-machines.md"
PUSH = "docs/push.md"
# What is typed on machines: pages, their headings, and how many blocks of commands stand below each.
TYPED: dict[str, dict[str, int]] = {
    README: {TWO_MACHINES: 6},
    THREE_MACHINES: {
        "## 1. Install": 2,
        "## 2. Have the kernels measure": 1,
        "## 3. Start the control plane": 2,
        "## 4. Start the agents": 1,
        "## 5. Say what is good": 1,
        "## 6. Decide whose TPMs you trust": 1,
        "## 7. Add the machines": 2,
        "## 8. See one fall": 3,
    },
    PUSH: {"## Set up": 2},
}


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
