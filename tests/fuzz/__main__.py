"""`python -m tests.fuzz TARGET [--seconds N] [--corpus DIR]`: coverage-guided fuzzing of one parser.

The corpus starts from captured evidence. Inputs that fail are written to the corpus directory as crash-* or
timeout-*; `python -m tests.fuzz TARGET --input FILE` runs one of them again.
"""

import argparse
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

try:
    import atheris
except ImportError:
    raise SystemExit(
        "tests.fuzz: error: atheris is not installed (pip install atheris; Linux on x86-64)"
    ) from None

with atheris.instrument_imports(include=["keylime"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS

_SECONDS_PER_INPUT = 10
_MEMORY_MIB = 2048
_MAX_INPUT = 32768


def main() -> None:
    """Runs one target until its time is over; the process ends with an error when an input fails."""
    arguments = _parse_arguments()
    target = TARGETS[arguments.target]
    if arguments.input is not None:
        target.try_one(arguments.input.read_bytes())
        return
    corpus = arguments.corpus or Path(tempfile.mkdtemp(prefix=f"keylime-fuzz-{arguments.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / f"seed-{sha256(seed).hexdigest()[:16]}").write_bytes(seed)
    options = [
        sys.argv[0],
        f"-max_total_time={arguments.seconds}",
        f"-timeout={_SECONDS_PER_INPUT}",
        f"-rss_limit_mb={_MEMORY_MIB}",
        f"-max_len={_MAX_INPUT}",
        f"-artifact_prefix={corpus}/",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup(options, target.try_one)
    atheris.Fuzz()


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz one parser.")
    parser.add_argument("target", choices=sorted(TARGETS), metavar="TARGET", help=", ".join(sorted(TARGETS)))
    parser.add_argument("--seconds", type=int, default=60, help="how long (default 60; 0: without end)")
    parser.add_argument("--corpus", type=Path, help="where inputs are kept (default: a temporary directory)")
    parser.add_argument("--input", type=Path, help="run this one input instead")
    return parser.parse_args()


if __name__ == "__main__":
    main()
