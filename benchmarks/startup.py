"""CPU seconds of each daemon from its start to its first answer: `python benchmarks/startup.py`.

At its first start the verifier makes a certificate authority, a server and a client certificate, that is
three RSA keys, whose cost is a matter of luck; the second start is the usual one. The agent's TPM is swtpm.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rig.processes import Daemon, free_port
from tests.fakes.swtpm import SoftwareTpm
from tests.lab.installation import write_config
from tests.lab.rest import Identity, Rest, client_context

BUDGET_S = 0.9
_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    label: str
    cpu_s: float
    took_s: float


def answers(rest: Callable[[], Rest], path: str) -> bool:
    """Whether a daemon answers, with whatever status."""
    try:
        rest().exchange("GET", path)
    except OSError:
        return False
    return True


def start(
    label: str, program: str, directory: Path, options: Mapping[str, str], is_up: Callable[[], bool]
) -> tuple[Daemon, Result]:
    """Starts a daemon and waits for its first answer."""
    began = time.perf_counter()
    daemon = Daemon(program, directory / f"{program}.log", options)
    while not is_up():
        if time.perf_counter() - began > _LIMIT_S:
            raise RuntimeError((directory / f"{program}.log").read_text())
        time.sleep(0.01)
    return daemon, Result(label, daemon.cpu_s, time.perf_counter() - began)


def measure(directory: Path) -> list[Result]:
    """Verifier twice, then registrar and agent twice each, which find the CA that the first one made."""
    start_verifier, registrar = verifier(directory), _registrar(directory)
    results = [start_verifier("verifier, first start"), start_verifier("verifier")]
    results += [registrar("registrar, first start"), registrar("registrar")]
    with ExitStack() as stack:
        ports = {"KEYLIME_REGISTRAR_PORT": str(free_port()), "KEYLIME_REGISTRAR_TLS_PORT": str(free_port())}
        daemon = Daemon("keylime_registrar", directory / "r.log", {"KEYLIME_DIR": str(directory), **ports})
        stack.enter_context(daemon).wait_for("Listening on")
        tpm = stack.enter_context(SoftwareTpm.manufactured(directory / "tpm", ca_directory=directory / "ca"))
        agent = _agent(directory, tpm.tcti, int(ports["KEYLIME_REGISTRAR_PORT"]))
        results += [agent("agent, first start"), agent("agent")]
    return results


def verifier(directory: Path) -> Callable[[str], Result]:
    """Starts a verifier in a directory, again and again."""

    def run(label: str) -> Result:
        port = free_port()
        options = {"KEYLIME_DIR": str(directory), "KEYLIME_VERIFIER_PORT": str(port)}
        rest = _no_identity(port)
        daemon, result = start(
            label, "keylime_verifier", directory, options, lambda: answers(rest, "/version")
        )
        with daemon:
            return result

    return run


def _registrar(directory: Path) -> Callable[[str], Result]:
    def run(label: str) -> Result:
        port = free_port()
        options = {
            "KEYLIME_DIR": str(directory),
            "KEYLIME_REGISTRAR_PORT": str(port),
            "KEYLIME_REGISTRAR_TLS_PORT": str(free_port()),
        }
        rest = Rest("127.0.0.1", port, None)
        daemon, result = start(
            label, "keylime_registrar", directory, options, lambda: answers(lambda: rest, "/version")
        )
        with daemon:
            return result

    return run


def _agent(directory: Path, tcti: str, registrar_port: int) -> Callable[[str], Result]:
    work_dir, lists = directory / "agent", directory / "securityfs"
    (work_dir / "cv_ca").mkdir(parents=True)
    (work_dir / "cv_ca/cacert.crt").write_bytes((directory / "cv_ca/cacert.crt").read_bytes())
    lists.mkdir()
    (lists / "ima").write_bytes(b"")
    certificate, key = directory / "cv_ca/client-cert.crt", directory / "cv_ca/client-private.pem"

    def run(label: str) -> Result:
        port = free_port()
        config = write_config(
            directory / "agent.conf",
            {
                "agent": {
                    "uuid": '"d432fbb3-d2f1-4a97-9ef7-75bd81c00000"',
                    "port": str(port),
                    "registrar_port": str(registrar_port),
                    "run_as": '""',
                    "enable_revocation_notifications": "false",
                    "ima_ml_path": f'"{lists / "ima"}"',
                    "measuredboot_ml_path": f'"{lists / "none"}"',
                }
            },
        )
        options = {
            "KEYLIME_DIR": str(work_dir),
            "KEYLIME_TEST": "on",
            "KEYLIME_AGENT_CONFIG": str(config),
            "TCTI": tcti,
        }
        identity = Identity(certificate, key)
        daemon, result = start(
            label,
            "keylime_agent",
            directory,
            options,
            lambda: answers(lambda: Rest("127.0.0.1", port, client_context(identity)), "/version"),
        )
        with daemon:
            return result

    return run


def _no_identity(port: int) -> Callable[[], Rest]:
    return lambda: Rest("127.0.0.1", port, client_context(None))


def render(results: Sequence[Result]) -> Table:
    table = Table(title="From start to first answer")
    for number, heading in enumerate(("", "CPU (s)", f"budget {BUDGET_S:g}", "time (s)")):
        table.add_column(heading, justify="right" if number else "left")
    for result in results:
        kept = "kept" if result.cpu_s <= BUDGET_S else "missed"
        table.add_row(result.label, f"{result.cpu_s:.2f}", kept, f"{result.took_s:.1f}")
    return table


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory(prefix="keylime-startup-") as directory:
        Console().print(render(measure(Path(directory))))


if __name__ == "__main__":
    main()
