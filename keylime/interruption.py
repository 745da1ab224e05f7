"""How programs end that somebody interrupts: one line, and the status that shells give them."""

import sys
from typing import NoReturn

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


def end_interrupted(program: str) -> NoReturn:
    """Ends the process."""
    print(f"{program}: interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)
