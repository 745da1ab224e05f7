"""Simulated machines under a verifier, seen from the process that measures: start, add, ask about them."""

import asyncio
import base64
import contextlib
import multiprocessing
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from benchmarks.rig.machines import FleetPlan, FleetReport, MachineIdentity, run_machines

POLICY = "fleet"
_ADDED_AT_ONCE = 16


class Fleet:
    """The processes of simulated machines, seen from the one that measures."""

    def __init__(self, controls: Sequence[Connection]) -> None:
        self._controls = controls
        self.identities: list[MachineIdentity] = [one for control in controls for one in control.recv()]

    def report(self) -> FleetReport:
        """What happened since the last report."""
        for control in self._controls:
            control.send(None)
        reports: list[FleetReport] = [control.recv() for control in self._controls]
        return FleetReport(
            sum(report.quotes for report in reports),
            min(report.fewest_rounds for report in reports),
            sum(report.connections for report in reports),
            [interval for report in reports for interval in report.intervals_s],
            sum(report.cpu_s for report in reports),
        )


@contextlib.contextmanager
def running_fleet(
    count: int,
    *,
    ima_lines: int,
    growth: int,
    processes: int,
    client_ca: Path,
    repeated: int = 1,
    first_number: int = 0,
) -> Iterator[Fleet]:
    """Machines that listen, numbered from `first_number`; they end with the block."""
    spawn = multiprocessing.get_context("spawn")
    share = -(-count // processes)
    with contextlib.ExitStack() as stack:
        controls = []
        for first in range(0, count, share):
            number = min(share, count - first)
            plan = FleetPlan(number, first_number + first, ima_lines, growth, client_ca, repeated)
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=run_machines, args=(plan, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join, 10)
            stack.callback(ours.close)
            controls.append(ours)
        yield Fleet(controls)


class Refused(RuntimeError):
    """An answer that is no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{text} ({status})")
        self.status = status


class Operator:
    """Calls the verifier's API with the client certificate that it made."""

    def __init__(self, session: aiohttp.ClientSession, port: int, authority: Path) -> None:
        self._session = session
        self._url = f"https://127.0.0.1:{port}/v2.5/agents/"
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.load_verify_locations(authority / "cacert.crt")
        self._tls.load_cert_chain(authority / "client-cert.crt", authority / "client-private.pem")

    async def add(self, machine: MachineIdentity, policy: str) -> None:
        """Adds an agent held to the shared policy; the first one brings its text."""
        body = {
            "cloudagent_ip": "127.0.0.1",
            "cloudagent_port": machine.port,
            "tpm_policy": '{"mask": "0x400"}',
            "metadata": "{}",
            "runtime_policy": base64.b64encode(policy.encode()).decode(),
            "runtime_policy_name": POLICY,
            "mb_policy": None,
            "mb_policy_name": "",
            "ima_sign_verification_keys": "",
            "revocation_key": "",
            "accept_tpm_hash_algs": ["sha512", "sha384", "sha256"],
            "accept_tpm_encryption_algs": ["ecc", "rsa"],
            "accept_tpm_signing_algs": ["ecschnorr", "ecdsa", "rsassa"],
            "ak_tpm": machine.ak_public,
            "mtls_cert": machine.certificate_pem,
            "supported_version": "2.5",
        }
        async with self._session.post(self._url + machine.agent_id, json=body, ssl=self._tls) as response:
            if response.status != 200:
                raise Refused(response.status, f"adding an agent: {await response.text()}")

    async def passes(self, machine: MachineIdentity) -> bool:
        """Whether an agent has passed."""
        async with self._session.get(self._url + machine.agent_id, ssl=self._tls) as response:
            answer = await response.json()
        return bool(answer["results"]["attestation_status"] == "PASS")

    async def show(self, machine: MachineIdentity) -> float:
        """Seconds until the status of an agent is here. Raises RuntimeError for one that does not pass.

        One that passed longer ago than `quote_interval` allows is pending: that is overload, no failure.
        """
        started = time.perf_counter()
        async with self._session.get(self._url + machine.agent_id, ssl=self._tls) as response:
            answer = await response.json()
        took_s = time.perf_counter() - started
        if response.status != 200 or answer["results"]["attestation_status"] not in ("PASS", "PENDING"):
            raise RuntimeError(f"{machine.agent_id} does not pass: {answer}")
        return took_s


async def add_all(operator: Operator, machines: Sequence[MachineIdentity]) -> None:
    """Adds machines, some at a time."""
    waiting = iter(machines)

    async def add_some() -> None:
        for machine in waiting:
            await operator.add(machine, "")

    await asyncio.gather(*(add_some() for _ in range(_ADDED_AT_ONCE)))


async def add_in_the_end(operator: Operator, machines: Sequence[MachineIdentity]) -> int:
    """Adds machines, some at a time and as often as it takes; how many attempts were refused."""
    waiting = iter(machines)
    refused = 0

    async def add_some() -> None:
        nonlocal refused
        for machine in waiting:
            is_done, attempts = False, 0
            while not is_done:
                attempts += 1
                try:
                    await operator.add(machine, "")
                    is_done = True
                except Refused as error:
                    # A part of an attempt that was refused may have been done: the agent is there.
                    is_done = attempts > 1 and error.status == 409
                    refused += not is_done

    await asyncio.gather(*(add_some() for _ in range(_ADDED_AT_ONCE)))
    return refused


async def until(fleet: Fleet, condition: Callable[[FleetReport], bool], limit_s: float) -> None:
    """Returns when a report fulfils `condition`."""
    deadline = time.monotonic() + limit_s
    while not condition(report := fleet.report()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the machines are not asked as they should be: {report}")
        await asyncio.sleep(0.2)
