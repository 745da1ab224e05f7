"""The console script: help and wrong usage need nothing but the parser, the rest starts with the command."""

import sys

from keylime.extras import extra_explained
from keylime.program_end import endings_told


def main() -> None:
    with endings_told("keylime_tenant"):
        with extra_explained("keylime_tenant", "tenant"):
            from keylime_tenant.arguments import parse_arguments

            arguments = parse_arguments(sys.argv[1:])
            from keylime_tenant.main import main as run
        run(arguments)
