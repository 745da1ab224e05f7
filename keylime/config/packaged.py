"""The packaged *.conf files, written from the tables: `python -m keylime.config.packaged [--check] DIR`."""

import argparse
import sys
from pathlib import Path

from keylime.config.options import TABLES
from keylime.config.render import render


def main() -> None:
    """Write the files, or with --check only compare; exit status 1 when one differs."""
    parser = argparse.ArgumentParser(description="Write the packaged configuration files.")
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    stale = []
    for table in TABLES.values():
        path: Path = arguments.directory / f"{table.component}.conf"
        text = render(table)
        if arguments.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(path.name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"differ from the tables: {', '.join(stale)}")


if __name__ == "__main__":
    main()
