"""What both acts of the fence demonstration do and look at, on the same three nodes."""

import functools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeVar

import msgspec

from keylime.messages.revocation import SignedRevocation
from keylime.messages.verifier import OperationalState
from keylime.revocation.message import RevocationKind
from tests.demo.fence_nodes import SECURE, Host, Site
from tests.lab.daemon import program
from tests.lab.waiting import await_value

T = TypeVar("T")
Step = Callable[[str, Callable[[], str]], None]

PAYLOADS = Path(__file__).with_name("payloads")
SSH_FILES = {"id_rsa": 0o600, "id_rsa.pub": 0o600, "authorized_keys": 0o600}
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2")
# Runs on the node: SQLite follows no path through another process's root.
_READ_REVOCATIONS = """\
import json, sqlite3
database = sqlite3.connect("/var/lib/keylime/cv_data.sqlite")
print(json.dumps(database.execute("SELECT message, signature FROM revocations ORDER BY number").fetchall()))
"""


class UnexpectedError(RuntimeError):
    """Something else was seen than a step is about."""


def expect(what: str, seen: object, expected: object) -> None:
    """Raises UnexpectedError unless both are equal."""
    if seen != expected:
        raise UnexpectedError(f"{what}: expected {expected!r}, saw {seen!r}")


def side_by_side(*works: Callable[[], T]) -> list[T]:
    """What each of `works` returns, done at the same time: machines do not wait for each other."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [done.result() for done in [pool.submit(work) for work in works]]


def for_each(hosts: Sequence[Host], work: Callable[[Host], T]) -> list[T]:
    """What `work` returns for each of the hosts, done at the same time."""
    return side_by_side(*(functools.partial(work, host) for host in hosts))


@dataclass(slots=True)
class Response:
    """What followed when an unlisted file ran, in seconds after it did; `executed` by node."""

    act: str
    began: float
    detected: float = 0.0
    executed: dict[str, float] = field(default_factory=dict)

    def elapsed(self) -> float:
        return time.monotonic() - self.began


@dataclass(slots=True)
class Stage:
    """The nodes, what their firmware measures, and how they have responded so far."""

    site: Site
    boot_log: bytes
    responses: list[Response] = field(default_factory=list)

    @property
    def rule(self) -> str:
        """What fences node1 off, as iptables lists it."""
        return f"-A INPUT -s {self.site.first.node.ip}/32 -j DROP"

    def make_keys(self) -> CompletedProcess[str]:
        """The SSH key pair in the payload, which all nodes share."""
        return self.site.node.run(
            "ssh-keygen", "-q", *("-b", "2048"), *("-t", "rsa"), *("-N", ""), *("-f", "payload/id_rsa")
        )

    def add(self, host: Host, *lists: str, verifier: tuple[str, ...] = ("-v", "127.0.0.1")) -> None:
        """`keylime_tenant -c add` with payload and empty reference state."""
        self.site.control.tenant(
            *verifier,
            *("-t", host.node.ip, "-u", host.agent_id, "--cert", "default", "--include", "payload"),
            *lists,
            *("--mb_refstate", "mb-refstate.json", "-c", "add"),
        )

    def run_greets(self) -> str:
        """What greets.sh says on node1; IMA measures a script before it runs."""
        self.site.first.machine.measure(Path("/root/greets.sh"))
        return self.site.first.node.run("/root/greets.sh").stdout

    def tamper(self, act: str) -> Response:
        """Makes greets.sh another program, runs it, and waits until the verifier names it."""
        verifier = self.site.control.verifier
        since = verifier.mark()
        self.site.first.node.run("sh", "-c", "echo 'echo \"Hacked!\"' >> greets.sh")
        response = Response(act, time.monotonic())
        self.responses.append(response)
        expect("greets.sh says", self.run_greets(), "Hello!\nHacked!\n")
        verifier.wait_for(r"Hashes for file /root/greets\.sh don't match", since=since)
        verifier.wait_for("keylime.ima - ERROR - IMA ERRORS: ", since=since)
        response.detected = response.elapsed()
        return response

    def send(self, host: Host, *messages: SignedRevocation) -> None:
        """Posts messages to a host's agent, as one who has stolen an operator's certificate could."""
        for message in messages:
            body = msgspec.to_builtins(message)
            self.site.client.request(host.node.ip, 9002, "POST", "/v2.5/notifications/revocation", body)

    def sent_revocation(self) -> SignedRevocation:
        """The genuine revocation that the verifier keeps of the first act; an all-clear follows it."""
        stored = json.loads(self.site.node.run(program("python"), "-c", _READ_REVOCATIONS).stdout)
        kinds = [json.loads(message)["type"] for message, _ in stored]
        expect("messages about the first act", kinds, [RevocationKind.REVOCATION, RevocationKind.CLEARED])
        return SignedRevocation(*stored[0])

    def state(self, host: Host) -> tuple[str, int]:
        """operational_state and attestation_count at the verifier."""
        path = f"/v2.5/agents/{host.agent_id}"
        status = self.site.client.request("127.0.0.1", 8881, "GET", path)
        return OperationalState(status["operational_state"]).text, int(status["attestation_count"])

    def await_rounds(self, host: Host, more: int) -> int:
        """The attestation_count, `more` rounds from now. Raises UnexpectedError when one of them fails."""
        return self.await_count(host, self.state(host)[1] + more)

    def await_count(self, host: Host, goal: int) -> int:
        """The attestation_count, once it is `goal` or more. Raises UnexpectedError when a round fails."""

        def reached() -> int | None:
            state, count = self.state(host)
            if state in ("Invalid Quote", "Failed"):
                log = self.site.control.verifier.text()[-1500:]
                raise UnexpectedError(f"{host.node.name} is {state}:\n{log}")
            return count if state == "Get Quote" and count >= goal else None

        return await_value(reached, f"{host.node.name} has {goal} attestations", limit_s=30)

    def await_state(self, host: Host, state: str) -> None:
        """Returns when the verifier gives the host this operational_state."""
        await_value(lambda: self.state(host)[0] == state, f"{host.node.name} is {state}")

    def stop_agent(self, host: Host) -> None:
        """A clean stop, which leaves no secrets behind."""
        expect(f"exit status of the agent on {host.node.name}", host.agent.stop(), 0)
        expect(f"tmpfs on {SECURE} of {host.node.name}", host.is_secure_mounted(), False)
