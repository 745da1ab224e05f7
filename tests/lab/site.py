"""An installation on loopback addresses whose machines come as tests ask for them."""

import base64
import hashlib
import json
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from keylime.ima.measurement_list import parse_line, split_lines
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.messages.verifier import OperationalState
from tests.lab.installation import (
    Control,
    Machine,
    Options,
    control_node,
    machine,
    prepare_agent,
    start_agent,
    trust_manufacturer,
)
from tests.lab.network import Node, loopback_nodes
from tests.lab.waiting import await_value

_RESERVED_PORT = 8999
_FIRST, _LAST = 20, 250

# Patience that outlasts any restart on a busy machine, and rounds so short that a test sees many.
QUICK = Options(
    verifier={
        "quote_interval": "0.3",
        "retry_interval": "0.3",
        "max_retries": "100",
        "request_timeout": "10",
    },
    tenant={"retry_interval": "0.2", "max_retries": "50", "request_timeout": "20"},
    agent={
        "exponential_backoff_initial_delay": "200",
        "exponential_backoff_max_delay": "500",
    },
)

_FAILED = (OperationalState.FAILED, OperationalState.INVALID_QUOTE, OperationalState.TENANT_FAILED)


@contextmanager
def reserve_subnet() -> Iterator[str]:
    """The first two numbers of addresses that no other test run of this machine uses, like "127.20"."""
    for number in range(_FIRST, _LAST):
        claim = socket.socket()
        try:
            claim.bind((f"127.{number}.255.254", _RESERVED_PORT))
        except OSError:
            claim.close()
            continue
        with claim:
            yield f"127.{number}"
        return
    raise RuntimeError("every loopback subnet is in use")


@dataclass(slots=True)
class Site:
    """Verifier, registrar and tenant on one node; machines on further ones, stopped with the site."""

    directory: Path
    subnet: str
    control: Control
    options: Options
    stack: ExitStack
    _nodes: int = field(default=1)

    def node(self, name: str) -> Node:
        """A further address with a disk of its own."""
        self._nodes += 1
        (node,) = loopback_nodes(
            self.directory,
            (f"{name}{self._nodes}",),
            self.subnet,
            first=self._nodes,
            forks=self.control.node.forks,
        )
        return node

    def machine(
        self, agent_id: str | None = None, *, program: str = "keylime_agent", **agent: str
    ) -> Machine:
        """A machine that is on, whose agent is configured with `agent` but not started."""
        options = replace(self.options, agent={**self.options.agent, **agent})
        made = self.stack.enter_context(
            machine(
                self.node("machine"),
                self.control,
                self.directory / "tpm-ca",
                options,
                agent_id=agent_id,
                program=program,
            )
        )
        made.ima_list.write_bytes(b"")
        trust_manufacturer(self.control, made)
        prepare_agent(self.control, made)
        return made

    def running_machine(self, **agent: str) -> Machine:
        """A machine whose agent is registered and active."""
        made = self.machine(None, **agent)
        start_agent(self.control, made)
        return made

    def attested_machine(self, *arguments: str | Path, **agent: str) -> Machine:
        """A machine that was added with these arguments and has passed twice."""
        made = self.running_machine(**agent)
        self.add(made, *arguments)
        self.await_passes(made)
        return made

    def add(
        self,
        which: Machine,
        *arguments: str | Path,
        check: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`keylime_tenant -c add`."""
        words = ("-c", "add", "-u", which.agent_id, *arguments)
        return self.control.tenant(*words, check=check, environ=environ)

    def record(self, which: Machine) -> dict[str, Any]:
        """What the verifier says of an agent, empty when it does not know it."""
        api = self.control.verifier_api(self.control.administrator)
        return api.request("GET", f"/v2.5/agents/{which.agent_id}").results

    def registration(self, which: Machine) -> dict[str, Any]:
        """The registrar's active record of an agent, empty when there is none."""
        api = self.control.registrar_api(self.control.administrator)
        return api.request("GET", f"/v2.5/agents/{which.agent_id}").results

    def reactivate(self, which: Machine) -> None:
        """Has the verifier attest a stopped or failed agent again."""
        api = self.control.verifier_api(self.control.administrator)
        answer = api.request("PUT", f"/v2.5/agents/{which.agent_id}/reactivate")
        if answer.code != 200:
            raise RuntimeError(f"reactivate: {answer}")

    def await_passes(self, which: Machine, more: int = 2) -> dict[str, Any]:
        """The record once the agent has passed `more` times from now. Raises RuntimeError when it fails."""
        goal = int(self.record(which).get("attestation_count", 0)) + more

        def passed() -> dict[str, Any] | None:
            record = self.record(which)
            if record["operational_state"] in (OperationalState.INVALID_QUOTE, OperationalState.FAILED):
                raise RuntimeError(f"{which.agent_id} failed: {record['last_findings']}\n{record}")
            return record if record["attestation_count"] >= goal else None

        return await_value(passed, f"{more} more passes of {which.node.name}")

    def await_state(self, which: Machine, state: OperationalState) -> dict[str, Any]:
        """The record once the agent is in `state`, and that is written."""

        def reached() -> dict[str, Any] | None:
            record = self.record(which)
            is_settled = record.get("attestation_status") == "FAIL" or state not in _FAILED
            return record if record.get("operational_state") == state and is_settled else None

        return await_value(reached, f"{which.node.name} is {state.text}")

    def runtime_policy(self, which: Machine, *files: Path, excludes: tuple[str, ...] = ()) -> Path:
        """A policy file that allows what the machine has measured so far, and `files`."""
        document = json.loads(EMPTY_POLICY)
        document["meta"]["generator"] = 3
        digests = document["digests"]
        for line in split_lines(which.ima_list.read_bytes()):
            entry = parse_line(line)
            digests.setdefault(entry.name, []).append(entry.digest.hex())
        for path in files:
            digests.setdefault(str(path), []).append(hashlib.sha256(path.read_bytes()).hexdigest())
        document["excludes"] = list(excludes)
        policy = self.control.node.disk / f"policy-{which.node.name}.json"
        policy.write_text(json.dumps(document))
        return policy


@contextmanager
def open_site(
    directory: Path, subnet: str, options: Options = QUICK, *, start: bool = True, forks: bool = False
) -> Iterator[Site]:
    """A site on `subnet` (three numbers); verifier and registrar listen already unless `start` is off.

    With `forks` programs are no installed scripts, see Node.
    """
    with ExitStack() as stack:
        (node,) = loopback_nodes(directory, ("control",), subnet, forks=forks)
        control = stack.enter_context(control_node(node, options))
        if start:
            control.verifier.start().wait_for("Listening on")
            control.registrar.start().wait_for("Listening on")
        yield Site(directory, subnet, control, options, stack)


def script(path: Path, text: str) -> Path:
    """A program on a machine's disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def attestation_key(registration: Mapping[str, Any]) -> bytes:
    """The AK in a registrar's record."""
    return base64.b64decode(str(registration["aik_tpm"]))


def errors_of(log: str) -> list[str]:
    """The lines of a log that end a program or should never be there: our own defects."""
    return re.findall(r".*(?:Traceback|because of a defect|- CRITICAL -).*", log)
