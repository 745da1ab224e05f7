"""Three machines share SSH keys; one is hacked, loses its keys, and is fenced off by its neighbour.

Every step states what it expects and waits to see it; the exit status is 0 only when all were seen.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from keylime.errors import KeylimeError
from tests.captures import capture
from tests.demo.fence_nodes import QUOTE_INTERVAL_S, open_site
from tests.demo.fence_python import PythonAct
from tests.demo.fence_shell import ShellAct
from tests.demo.fence_stage import Response, Stage
from tests.demo.report import Report, Seen, conclusion
from tests.lab.network import enter_user_namespace, open_network
from tests.lab.private_root import NotPermittedError, missing_programs

RESPONSE_S = 1.0  # from a verdict to the last action, in which a Python interpreter starts
STEPS = ShellAct.STEPS + PythonAct.STEPS

_PROGRAMS = (
    "ip",
    "unshare",
    "nsenter",
    "iptables",
    "ping",
    "sshd",
    "ssh",
    "ssh-keygen",
    "swtpm",
    "swtpm_setup",
)
_SETGROUPS = Path("/proc/self/setgroups")
_LIMIT_S = QUOTE_INTERVAL_S + RESPONSE_S


def main() -> int:
    """0 when every step was seen, 1 when one was not or the nodes cannot be made here."""
    parser = argparse.ArgumentParser(prog="make demo-fence", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the logs behind for a look")
    arguments = parser.parse_args()
    enter_user_namespace()
    console = Console(soft_wrap=not sys.stdout.isatty())
    try:
        seen = demonstrate(console, keep=arguments.keep)
        console.print(conclusion(seen))
        return 1 if seen is Seen.PARTLY else 0
    except NotPermittedError as error:
        print(f"error: no nodes with a network and files of their own: {error}", file=sys.stderr)
        return 1


def demonstrate(console: Console, *, keep: bool = False) -> Seen:
    """Both acts and their summary; what was seen of it. Raises NotPermittedError before the first."""
    check_environment()
    os.umask(0o077)
    report = Report(console)
    responses: list[Response] = []
    directory = Path(tempfile.mkdtemp(prefix="keylime-fence-"))
    try:
        perform(directory, report.step, responses, console.print)
    except (KeylimeError, OSError, RuntimeError, TimeoutError) as error:
        if isinstance(error, NotPermittedError):
            raise
        console.print(f"The demonstration ended early: {error}", style="red", highlight=False, markup=False)
    finally:
        if keep:
            console.print(f"Logs are left in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    console.print(report.summary())
    console.print(times(responses))
    if not report.is_complete(STEPS):
        return Seen.PARTLY
    return Seen.ALL if all(is_in_time(response) for response in responses) else Seen.LATE


def check_environment() -> None:
    """Raises NotPermittedError when it is clear without trying that the nodes cannot be made."""
    if os.geteuid() != 0:
        raise NotPermittedError("only root can make them")
    if missing := missing_programs(*_PROGRAMS):
        raise NotPermittedError(f"not installed: {', '.join(missing)}")
    if _SETGROUPS.read_text().strip() != "allow":
        raise NotPermittedError("sshd has to change groups, which this user namespace denies; run as root")


def perform(
    directory: Path,
    step: Callable[[str, Callable[[], str]], None],
    responses: list[Response],
    say: Callable[[str], None],
) -> None:
    """Both acts on nodes made for them below `directory`; `responses` gets one for each act."""
    with ExitStack() as stack:
        network = stack.enter_context(open_network(directory, ("control", "node1", "node2")))
        site = stack.enter_context(open_site(directory, network))
        say(f"Three nodes, each with its own /etc, /root and /var/lib/keylime: {network.kind}")
        stage = Stage(site, capture("direct-efistub").boot_log, responses)
        ShellAct(stage).run(step)
        PythonAct(stage).run(step)


def times(responses: list[Response]) -> Table:
    """How fast the two acts went, against one quote interval and a second for the rest."""
    table = Table(
        title=f"From the bad entry in the IMA list, in seconds; at most {_LIMIT_S:.2f} are aimed at"
    )
    table.add_column("action")
    for column in ("detected", "executed on node1", "executed on node2"):
        table.add_column(column, justify="right")
    table.add_column("")
    for response in responses:
        shown = ("-" if moment is None else f"{moment:.2f}" for moment in _moments(response))
        # A slow machine is no failure of the demonstration.
        mark = "[green]in time[/green]" if is_in_time(response) else "[yellow]late[/yellow]"
        table.add_row(response.act, *shown, mark)
    return table


def is_in_time(response: Response) -> bool:
    """Whether the act was detected and answered as fast as is aimed at."""
    return all(moment is not None and moment <= _LIMIT_S for moment in _moments(response))


def _moments(response: Response) -> list[float | None]:
    return [response.detected or None, *(response.executed.get(name) for name in ("node1", "node2"))]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
        sys.exit(130)
