"""The main job before your eyes: real daemons, real TPM commands, one machine that falls from grace.

Where namespaces permit, it falls once more and is fenced off by its neighbour.

Every step states what it expects and waits to see it; the exit status is 0 only when all were seen.
"""

import argparse
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from keylime.errors import KeylimeError
from tests.captures import capture
from tests.demo import fence
from tests.demo.report import Report, Seen, conclusion
from tests.demo.scenario import Scenario
from tests.lab.installation import Options, open_lab
from tests.lab.network import enter_user_namespace, open_network
from tests.lab.private_root import NotPermittedError


def main() -> int:
    """0 when every step was seen, 1 when one was not."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave configuration and logs behind for a look")
    arguments = parser.parse_args()
    enter_user_namespace()
    os.umask(0o077)
    console = Console(soft_wrap=not sys.stdout.isatty())
    parts: list[Seen | None] = [_main_part(console, keep=arguments.keep)]
    console.rule("Fencing off a hacked machine")
    try:
        parts.append(fence.demonstrate(console, keep=arguments.keep))
    except NotPermittedError as error:
        console.print(f"Left out, {error}.", highlight=False, markup=False)
        parts.append(None)
    console.print(conclusion(*parts))
    return 1 if Seen.PARTLY in parts else 0


def _main_part(console: Console, *, keep: bool) -> Seen:
    report = Report(console)
    directory = Path(tempfile.mkdtemp(prefix="keylime-demo-"))
    try:
        with ExitStack() as stack:
            network = stack.enter_context(open_network(directory, ("control", "node1", "node2")))
            console.print(f"Three nodes: {network.kind}; files in {directory}")
            lab = stack.enter_context(open_lab(directory, network.nodes, Options()))
            boot_log = (capture("direct-efistub").path / "binary_bios_measurements").read_bytes()
            Scenario(lab, directory, boot_log).run(report.step)
    except (KeylimeError, OSError, RuntimeError, TimeoutError) as error:
        console.print(f"[red]The demonstration ended early:[/red] {error}", highlight=False, markup=True)
    finally:
        if keep:
            console.print(f"Configuration, databases and logs are left in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    console.print(report.summary())
    return Seen.ALL if report.is_complete(Scenario.STEPS) else Seen.PARTLY


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
        sys.exit(130)
