"""A real process of the agent that attests by itself, with a software TPM, before a scripted verifier.

The verifier proves each session and quote, and says what others may say as well.
"""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from keylime.tpm.keys import SignatureScheme, parse_attestation_key
from tests.captures import VM_DEBIAN12
from tests.fakes.agent_process import PushAgentProcess, Registrar
from tests.fakes.attesting_agent import Machine
from tests.fakes.eventual import eventually
from tests.fakes.field_push_agent import FieldPushAgent, Logs, Refused
from tests.fakes.scripted_push_verifier import Scripted, ScriptedPushVerifier
from tests.fakes.software_ak import SoftwareAk
from tests.fakes.swtpm import SoftwareTpm
from tests.fakes.tls_material import SERVER_AUTH, Authority
from tests.os_logs import SYSTEMD_262

AGENT_ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
IMA_LINES = [f"10 {number:040x} ima-ng sha256:{number:064x} /bin/{number}\n" for number in range(5)]
OS_LOG = SYSTEMD_262 / "sdboot-uki.os.log"
BOOT_LOG = VM_DEBIAN12 / "grub-secureboot" / "binary_bios_measurements"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with SoftwareTpm.manufactured(tmp_path_factory.mktemp("tpm")) as tpm:
        yield tpm


@dataclass
class Site:
    """One agent's surroundings: its working directory, a registrar over TLS, two verifiers."""

    work_dir: Path
    tcti: str
    registrar: Registrar
    registrar_port: int
    verifiers: tuple[ScriptedPushVerifier, ScriptedPushVerifier]

    def agent(self, **options: object) -> PushAgentProcess:
        base: dict[str, object] = {
            "uuid": AGENT_ID,
            "registrar_tls_enabled": True,
            "registrar_tls_port": self.registrar_port,
            "registrar_tls_ca_cert": "ca.crt",
            "registrar_port": 1,
            "verifier_url": ", ".join(verifier.url for verifier in self.verifiers),
            "verifier_tls_ca_cert": "ca.crt",
            "attestation_interval_seconds": 1,
            "ima_ml_path": self.work_dir / "ima",
            "measuredboot_ml_path": BOOT_LOG,
            "os_ml_path": OS_LOG,
        }
        return PushAgentProcess(self.work_dir, self.tcti, **(base | options))

    async def enrol(self, *verifiers: ScriptedPushVerifier) -> None:
        """Adds the agent, as soon as it is registered, with the AK that the registrar knows."""
        await eventually(lambda: AGENT_ID in self.registrar.active)
        key = parse_attestation_key(base64.b64decode(self.registrar.requests[-1].aik_tpm or ""))
        for verifier in verifiers:
            verifier.added[AGENT_ID] = key


@asynccontextmanager
async def site(tmp_path: Path, machine: SoftwareTpm) -> AsyncIterator[Site]:
    authority = Authority()
    authority.write(tmp_path / "ca.crt")
    (tmp_path / "ima").write_text("".join(IMA_LINES[:3]))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue("server", usages=(SERVER_AUTH,)).load_into(tls)
    registrar = Registrar()
    server, port = registrar.serve(tls=tls)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, 0)
        first = await stack.enter_async_context(ScriptedPushVerifier(tls))
        second = await stack.enter_async_context(ScriptedPushVerifier(tls))
        yield Site(tmp_path, machine.tcti, registrar, port, (first, second))


def run(scenario: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 170))


def listening_ports(process_id: int) -> list[int]:
    """The TCP ports on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{process_id}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process_id}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.append(int(fields[1].rpartition(":")[2], 16))
    return found


@pytest.mark.parametrize("kind", ["rsa", "ecc"])
def test_an_agent_attests_by_itself(tmp_path: Path, machine: SoftwareTpm, kind: str) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine) as here:
            first, second = here.verifiers
            scheme = {"rsa": "rsassa", "ecc": "ecdsa"}[kind]
            async with here.agent(tpm_encryption_alg=kind, tpm_signing_alg=scheme) as agent:
                await agent.line(f"Agent UUID: {AGENT_ID}")
                await agent.line("is registered and active")
                assert here.registrar.requests[-1].mtls_cert == "disabled"
                await agent.line("keylime_tenant -c add --push-model")
                assert listening_ports(agent.pid) == []
                await here.enrol(first, second)
                await _check_evidence(here, first)
                await _check_connections(first)
                if kind == "ecc":  # what follows does not depend on the kind of key
                    await _check_answers(here, agent)
                    await _check_other_verifier(here, agent)
                assert await agent.stop() == 0
                assert "Traceback" not in str(agent)
                assert "Bearer" not in str(agent)

    run(scenario())


async def _check_evidence(here: Site, verifier: ScriptedPushVerifier) -> None:
    verifier.pcrs = [0, 10]
    verifier.logs = ["uefi_log", "ima_log", "os_log"]
    count = len(verifier.evidence)
    await eventually(lambda: len(verifier.evidence) > count + 1)
    taken = verifier.evidence[-1]
    assert taken.values is not None
    assert set(taken.values.values) == {0, 10}, "PCR 16 is nobody's business here"
    boot_log = BOOT_LOG.read_bytes()
    assert base64.b64decode(taken.logs["uefi_log"]["entries"]) == boot_log
    assert taken.logs["os_log"]["entries"] == base64.b64encode(OS_LOG.read_bytes()).decode()
    assert taken.logs["ima_log"] == {"entry_count": 3, "entries": "".join(IMA_LINES[:3])}
    verifier.offset = 3
    (here.work_dir / "ima").write_text("".join(IMA_LINES))
    await eventually(lambda: verifier.evidence[-1].logs["ima_log"]["entries"] == "".join(IMA_LINES[3:]))
    offered = {one["evidence_type"]: one["capabilities"] for one in verifier.evidence[-1].offered}
    assert offered["ima_log"]["entry_count"] == 5
    assert offered["uefi_log"]["entry_count"] > 50
    assert verifier.evidence[-1].boot_time == taken.boot_time
    verifier.offset = 0
    verifier.logs = ["ima_log"]


async def _check_connections(verifier: ScriptedPushVerifier) -> None:
    """They are kept alive, but for one that carried as much as a boot log, which an answer repeats here."""
    await eventually(lambda: "uefi_log" not in verifier.evidence[-1].logs)
    used, seen = set(verifier.connections), len(verifier.evidence)
    await eventually(lambda: len(verifier.evidence) >= seen + 2)
    assert verifier.connections == used


async def _check_answers(here: Site, agent: PushAgentProcess) -> None:
    """Whatever a verifier says, the agent goes on, and does not come too often."""
    verifier = here.verifiers[0]
    trouble = {"errors": [{"status": "422", "code": "x", "detail": "of no use", "source": {"pointer": "/d"}}]}
    for step, answer, said in (
        ("negotiate", Scripted(422, trouble), "422 of no use (/d)"),
        ("negotiate", Scripted(429, None, {"Retry-After": "1"}), "429"),
        ("negotiate", Scripted(409), "409"),
        ("negotiate", Scripted(201, {"data": {}}, {"Location": "/x"}), "the answer cannot be used"),
        ("negotiate", Scripted(200, None, {"Retry-After": "0"}), ": 200"),
        ("deliver", Scripted(403), ": 403"),
        ("open", Scripted(429, None, {"Retry-After": "1"}), "429"),
        ("open", Scripted(200, {"data": {"type": "session"}}), "the answer cannot be used"),
    ):
        verifier.instead[step].append(answer)
        if step == "open":
            verifier.forget_tokens()
        await eventually(partial(_is_used_up, verifier, step))
        await _attests(verifier)
        await agent.line(said)
    logins = verifier.logins
    verifier.forget_tokens()
    await eventually(lambda: verifier.logins == logins + 1)
    verifier.pcrs, verifier.offset = [10], 99
    await agent.line("asked for from entry 99, where it has none")
    assert verifier.received[-1].kind in ("error", "attestation")
    assert any(one.kind == "error" and one.step == "deliver" for one in verifier.received)
    verifier.offset = 0


def _is_used_up(verifier: ScriptedPushVerifier, step: str) -> bool:
    return not verifier.instead[step]


async def _attests(verifier: ScriptedPushVerifier) -> None:
    count = len(verifier.evidence)
    await eventually(lambda: len(verifier.evidence) > count)


async def _check_other_verifier(here: Site, agent: PushAgentProcess) -> None:
    """The other one is asked at once; who has answered is asked again."""
    first, second = here.verifiers
    await first.stop()
    await eventually(lambda: len(second.evidence) > 1)
    await first.start()
    count, others = len(second.evidence), len(first.evidence)
    await eventually(lambda: len(second.evidence) > count + 1)
    assert len(first.evidence) == others
    second.instead["deliver"].append(Scripted(hang_up=True))
    await eventually(lambda: len(first.evidence) > others)


def test_a_verifier_whom_nobody_vouches_for_is_told_nothing(tmp_path: Path, machine: SoftwareTpm) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine) as here:
            Authority("another").write(tmp_path / "other.crt")
            async with here.agent(
                verifier_tls_ca_cert="other.crt", tpm_encryption_alg="ecc", tpm_signing_alg="ecdsa"
            ) as agent:
                await agent.line("certificate verify failed")
                assert [verifier.received for verifier in here.verifiers] == [[], []]
                here.registrar.refusal = 403
                assert await agent.stop() == 0
            async with here.agent(tpm_encryption_alg="ecc", tpm_signing_alg="ecdsa") as agent:
                # Nobody could start it again where nobody reaches it.
                await agent.line("keylime_tenant -c regdelete", count=2)
                here.registrar.refusal = None
                await agent.line("is registered and active")
                assert await agent.stop() == 0

    run(scenario())


def test_one_line_says_what_is_wrong(tmp_path: Path, machine: SoftwareTpm) -> None:
    async def scenario() -> None:
        for options, said in (
            ({"verifier_url": "http://127.0.0.1:8881"}, "[agent] verifier_url = http://127.0.0.1:8881"),
            ({"verifier_tls_ca_cert": "none.crt"}, "[agent] verifier_tls_ca_cert"),
        ):
            async with PushAgentProcess(tmp_path, machine.tcti, **options) as agent:
                assert await agent.ended() == 1
            (line,) = agent.errors.splitlines()
            assert line.startswith("keylime_push_model_agent: error: ")
            assert said in line

    run(scenario())


@pytest.mark.parametrize(
    ("kind", "scheme"), [("rsa2048", SignatureScheme.RSASSA), ("ecc256", SignatureScheme.ECDSA)]
)
def test_both_stand_ins_understand_each_other(kind: str, scheme: SignatureScheme) -> None:
    """Whoever is tested with one of them meets somebody as strict as the other."""

    async def scenario() -> None:
        authority = Authority()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue("server", usages=(SERVER_AUTH,)).load_into(server)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.trusted_by(client)
        kernel = Machine(SoftwareAk.generate(kind, scheme))
        kernel.measure("boot_aggregate", b"")
        logs = Logs(boot=BOOT_LOG.read_bytes())
        async with (
            ScriptedPushVerifier(server) as verifier,
            FieldPushAgent(AGENT_ID, verifier.url, client, kernel, logs) as agent,
        ):
            with pytest.raises(Refused, match="200"):
                await agent.attest()
            verifier.added[AGENT_ID] = parse_attestation_key(kernel.ak.tpm2b_public)
            verifier.pcrs, verifier.logs = [0, 10], ["uefi_log", "ima_log"]
            assert await agent.attest() == 1
            verifier.forget_tokens()
            kernel.measure("/bin/true", b"true")
            assert await agent.attest() == 1
            assert verifier.logins == 2
            assert verifier.evidence[-1].logs["ima_log"]["entry_count"] == 2

    run(scenario())
