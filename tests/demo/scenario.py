"""The steps of the demonstration. Each returns in words what it saw, and raises when it did not see it."""

import hashlib
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.installation import Lab, Machine

Step = Callable[[str, Callable[[], str]], None]

_ROUNDS = 3
_ACTION = """\
#!/bin/sh
# Told of every revocation; $1 is the message as a JSON document.
echo "Action type: $(grep -o '"type":"[^"]*' "$1" | cut -d'"' -f4)"
cp "$1" revocation-seen.json
"""
_GREETS = "#!/bin/sh\necho 'Hello!'\n"


@dataclass(slots=True)
class Scenario:
    """The story on two machines: IMA and measured boot watch the first, measured boot the second."""

    STEPS = 11

    lab: Lab
    directory: Path
    boot_log: bytes
    times: dict[str, float] = field(default_factory=dict)

    @property
    def first(self) -> Machine:
        return self.lab.machines[0]

    @property
    def second(self) -> Machine:
        return self.lab.machines[1]

    @property
    def greets(self) -> Path:
        """The script of the first machine that its owner approved."""
        return self.first.node.disk / "root/greets.sh"

    def run(self, step: Step) -> None:
        """All steps, in order."""
        step("power on: TPMs manufactured, a genuine boot log replayed into each", self.power_on)
        step("keylime_verifier makes its CA and listens", self.start_verifier)
        step("keylime_registrar listens", self.start_registrar)
        step("the agents register and prove that EK and AK share a TPM", self.register)
        step("add node1: IMA allowlist, exclude list, measured boot", self.add_first)
        step("add node2: measured boot only", self.add_second)
        step(f"both are attested, round after round ({_ROUNDS} at least)", self.attest)
        step("node1 runs greets.sh, which is listed", self.run_approved)
        step("node1 runs greets.sh with one line more", self.run_tampered)
        step("both agents verify the revocation and act on it", self.revoke)
        step("everything stops cleanly", self.stop)

    def power_on(self) -> str:
        """Reset state of the TPM, what firmware and kernel measured, the first files that run."""
        for machine in self.lab.machines:
            machine.boot(self.boot_log)
        self.greets.parent.mkdir(parents=True)
        self.greets.write_text(_GREETS)
        self.greets.chmod(0o755)
        self.first.measure(Path("/bin/sh"), Path("/usr/bin/env"))
        return f"2 software TPMs with EK certificates of a local CA, boot log of {len(self.boot_log)} bytes"

    def start_verifier(self) -> str:
        control = self.lab.control
        port = control.verifier.start().wait_for(r"Listening on (\S+)")[1]
        made = sorted(path.name for path in (control.node.work_dir / "cv_ca").iterdir())
        if "cacert.crt" not in made:
            raise RuntimeError("the verifier made no CA certificate")
        return f"listening on {port}; cv_ca has {len(made)} files"

    def start_registrar(self) -> str:
        address = self.lab.control.registrar.start().wait_for(r"Listening on (\S+)")[1]
        return f"listening on {address}"

    def register(self) -> str:
        self.lab.trust_manufacturer()
        for machine in self.lab.machines:
            self.lab.start_agent(machine)
        listed = self.lab.control.tenant("-c", "reglist").stdout
        missing = [machine.node.name for machine in self.lab.machines if machine.agent_id not in listed]
        if missing:
            raise RuntimeError(f"not in the registrar's list: {', '.join(missing)}")
        return "both credentials were activated, both ids are in the registrar's list"

    def add_first(self) -> str:
        files = self._policy_files()
        self._add(
            self.first,
            *("--allowlist", files / "allowlist.txt", "--exclude", files / "exclude.txt"),
        )
        return "EK certificate and quote checked; the verifier has the agent"

    def add_second(self) -> str:
        self._add(self.second)
        return "EK certificate and quote checked; the verifier has the agent"

    def attest(self) -> str:
        counts = [self._await_rounds(machine, _ROUNDS) for machine in self.lab.machines]
        for machine in self.lab.machines:
            machine.agent.wait_for("payload installed", limit_s=20)
        return f"Get Quote, attestation_count {counts[0]} and {counts[1]}; V delivered, payloads installed"

    def run_approved(self) -> str:
        before = self._state(self.first)[1]
        self._run_greets()
        count = self._await_rounds(self.first, before + _ROUNDS)
        return f"still Get Quote, attestation_count {before} -> {count}"

    def run_tampered(self) -> str:
        control = self.lab.control
        since = control.verifier.mark()
        with self.greets.open("a") as script:
            script.write("echo 'Hacked!'\n")
        self.times["tampered"] = time.monotonic()
        self._run_greets()
        seen = control.verifier.wait_for(
            r"Hashes for file (\S+) don't match (\w+) not in (.+)", since=since, limit_s=20
        )
        control.verifier.wait_for("keylime.ima - ERROR - IMA ERRORS: ", since=since, limit_s=5)
        self.times["detected"] = time.monotonic()
        digest = hashlib.sha256(self.greets.read_bytes()).hexdigest()
        if seen[1] != str(self.greets) or seen[2] != digest:
            raise RuntimeError(f"the verifier reports {seen[0]}, but {self.greets} has {digest}")
        self._await(lambda: self._state(self.first)[0] == "Invalid Quote", "node1 is Invalid Quote")
        return (
            f"detected in {self.times['detected'] - self.times['tampered']:.2f} s: Invalid Quote;\n"
            f"    {seen[1]}\n    observed {seen[2]}\n    expected {seen[3]}"
        )

    def revoke(self) -> str:
        for machine in self.lab.machines:
            machine.agent.wait_for(r"revocation message about agent \S+ .*over ZeroMQ", limit_s=10)
            machine.agent.wait_for("Executing revocation action local_action_note.sh", limit_s=10)
            machine.agent.wait_for("Action type: revocation", limit_s=10)
            message = (machine.node.work_dir / "revocation-seen.json").read_text()
            if self.first.agent_id not in message:
                raise RuntimeError(f"the message on {machine.node.name} is not about node1: {message}")
        executed = time.monotonic() - self.times["tampered"]
        state = self._state(self.second)[0]
        if state != "Get Quote":
            raise RuntimeError(f"node2 should go on as before but is {state}")
        return (
            f"tampered -> detected {self.times['detected'] - self.times['tampered']:.2f} s "
            f"-> executed on both {executed:.2f} s; node2 is still Get Quote"
        )

    def stop(self) -> str:
        control = self.lab.control
        daemons = [*(machine.agent for machine in self.lab.machines), control.registrar, control.verifier]
        started = time.monotonic()
        statuses = {f"{daemon.name} on {daemon.node.name}": daemon.stop(signal.SIGTERM) for daemon in daemons}
        failed = {name: status for name, status in statuses.items() if status != 0}
        if failed:
            raise RuntimeError(f"not a clean stop: {failed}")
        return f"{len(daemons)} daemons ended with 0 within {time.monotonic() - started:.2f} s of SIGTERM"

    def _policy_files(self) -> Path:
        """What an operator writes: allowed digests, expressions for what is left out."""
        files = self.lab.control.node.disk / "root"
        files.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(self.greets.read_bytes()).hexdigest()
        aggregate = self.first.ima_list.read_text().split()[3].rpartition(":")[2]
        (files / "allowlist.txt").write_text(f"{aggregate}  boot_aggregate\n{digest}  {self.greets}\n")
        (files / "exclude.txt").write_text("/usr/.*\n/bin/.*\n")
        return files

    def _add(self, machine: Machine, *extra: str | Path) -> None:
        node = machine.node
        refstate = self.lab.control.node.disk / "mb-refstate.json"
        refstate.write_text("{}")
        payload = self.lab.control.node.disk / "payload"
        payload.mkdir(exist_ok=True)
        (payload / "action_list").write_text("local_action_note.sh\n")
        (payload / "local_action_note.sh").write_text(_ACTION)
        self.lab.control.tenant(
            *("-v", self.lab.control.node.ip, "-t", node.ip, "-u", machine.agent_id, "--cert", "default"),
            *("--include", payload, "--mb_refstate", refstate, *extra, "-c", "add"),
        )

    def _run_greets(self) -> None:
        """Runs the script as a user would; IMA measures a file before it runs."""
        self.first.measure(self.greets)
        subprocess.run(self.first.node.command(self.greets), check=True, capture_output=True)  # noqa: S603

    def _state(self, machine: Machine) -> tuple[str, int]:
        status = self.lab.control.status(machine.agent_id)
        return str(status["operational_state"]), int(status["attestation_count"])

    def _await_rounds(self, machine: Machine, count: int) -> int:
        """The attestation_count, once it is at least `count` with the machine in good standing."""

        def reached() -> bool:
            state, now = self._state(machine)
            if state in ("Invalid Quote", "Failed"):
                raise RuntimeError(
                    f"{machine.node.name} is {state}:\n{self.lab.control.verifier.text()[-1500:]}"
                )
            return state == "Get Quote" and now >= count

        self._await(reached, f"{machine.node.name} has {count} attestations")
        return self._state(machine)[1]

    def _await(self, condition: Callable[[], bool], what: str, limit_s: float = 30) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not seen within {limit_s:.0f} s: {what}")
            time.sleep(0.1)
