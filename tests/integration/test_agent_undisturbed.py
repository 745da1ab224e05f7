"""An agent beside a second one, with a TPM that goes away, and with a start that cannot succeed."""

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from keylime.errors import TpmError, TpmLost
from keylime.hashes import HashAlgorithm
from keylime.messages.agent import QuoteReply
from keylime.tpm.device import Tpm
from keylime.tpm.pcr import DATA_PCR, PcrSelection
from keylime.tpm.tss_errors import is_loss
from keylime_agent.tpm_recovery import PAUSES_S, RecoveringTpmThread
from tests.fakes.agent_process import AgentProcess
from tests.fakes.swtpm import SoftwareTpm
from tests.integration.test_agent import NONCE, run, site

SHA256 = HashAlgorithm.SHA256


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    with SoftwareTpm.manufactured(tmp_path_factory.mktemp("tpm"), with_ek_certificate=False) as tpm:
        yield tpm


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def loaded_keys(tcti: str) -> frozenset[int]:
    with Tpm.open(tcti) as other:
        return other._tpm_handles(0x80000000)


def flush_everything(tcti: str) -> None:
    with Tpm.open(tcti) as other:
        for handle in other._tpm_handles(0x80000000):
            other._esapi.flush_context(other._esapi.tr_from_tpmpublic(handle))


def keep_a_payload(work_dir: Path) -> None:
    """What a payload left in the secure directory, which in test mode is this one."""
    (work_dir / "tmpfs-dev" / "unzipped").mkdir(parents=True, mode=0o700)
    (work_dir / "tmpfs-dev").chmod(0o700)
    (work_dir / "tmpfs-dev" / "unzipped" / "secret").write_text("kept")


def test_a_second_agent_touches_nothing_of_the_first(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with (
            site(tmp_path, machine, authority) as here,
            here.agent() as first,
            await here.peer(first) as peer,
        ):
            (tmp_path / "tmpfs-dev" / "secret").write_text("kept")
            before, keys = contents(tmp_path), loaded_keys(machine.tcti)
            for tcti in (machine.tcti, "swtpm:host=127.0.0.1,port=1"):
                here.tcti = tcti
                async with here.agent() as second:
                    assert await second.ended() == 1
                assert f"another keylime_agent works in {tmp_path}" in second.errors
                assert "systemctl stop keylime_agent" in second.errors
                assert second.errors.count("\n") == 1
            assert (contents(tmp_path), loaded_keys(machine.tcti)) == (before, keys)
            await peer.fetch(QuoteReply, "GET", "/v2.5/quotes/identity", query={"nonce": NONCE})

    run(scenario())


def test_an_agent_that_cannot_have_its_port_touches_nothing_at_all(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        here_dir, there_dir = tmp_path / "here", tmp_path / "there"
        here_dir.mkdir()
        there_dir.mkdir()
        async with (
            site(here_dir, machine, authority) as here,
            site(there_dir, machine, authority) as there,
            here.agent() as first,
        ):
            port = await first.port()
            await first.line("is registered and active")
            keep_a_payload(there_dir)
            before, keys = contents(there_dir), loaded_keys(machine.tcti)
            async with there.agent(port=port) as second:
                assert await second.ended() == 1
            assert f"cannot listen on 127.0.0.1:{port}" in second.errors
            assert (contents(there_dir), loaded_keys(machine.tcti)) == (before, keys)

    run(scenario())


def test_a_start_with_a_wrong_tcti_leaves_the_secure_directory_as_it_is(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here:
            keep_a_payload(tmp_path)
            before = contents(tmp_path)
            here.tcti = "swtpm:host=127.0.0.1,port=1"
            async with here.agent() as agent:
                assert await agent.ended() == 1
            assert "cannot reach the TPM" in agent.errors
            assert contents(tmp_path) == before

    run(scenario())


def test_a_working_directory_that_may_not_be_read_is_one_clear_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        blocked = tmp_path / "file"
        blocked.write_text("")
        (tmp_path / "agent.conf").write_text("")
        agent = AgentProcess(blocked / "keylime", "device:/dev/null", config=tmp_path / "agent.conf")
        async with agent:
            assert await agent.ended() == 1
        assert agent.errors.startswith("keylime_agent: error: working directory")
        assert agent.errors.count("\n") == 1

    run(scenario())


@pytest.mark.parametrize("loss", ["restart", "flush"])
def test_a_tpm_that_was_lost_is_opened_again(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA, loss: str
) -> None:
    async def scenario() -> None:
        async with (
            site(tmp_path, machine, authority) as here,
            here.agent() as agent,
            await here.peer(agent) as peer,
        ):
            for count in range(1, 5):
                await peer.fetch(QuoteReply, "GET", "/v2.5/quotes/identity", query={"nonce": NONCE})
                if loss == "restart":
                    await asyncio.to_thread(machine.restart)
                else:
                    await asyncio.to_thread(flush_everything, machine.tcti)
                query = {"nonce": NONCE, "mask": "0x400", "partial": "0"}
                await peer.fetch(QuoteReply, "GET", "/v2.5/quotes/integrity", query=query)
                await agent.line("the TPM is open again and its keys are loaded", count=count)
            assert await agent.stop() == 0

    run(scenario())


def test_a_tpm_that_does_not_come_back_ends_the_agent_after_patient_attempts(machine: SoftwareTpm) -> None:
    slept: list[float] = []
    ends: list[TpmError] = []

    async def sleep(pause_s: float) -> None:
        slept.append(pause_s)

    async def scenario() -> None:
        with Tpm.open(machine.tcti) as tpm, ThreadPoolExecutor(1) as executor:
            thread = RecoveringTpmThread(tpm, executor, ends.append, sleep=sleep)
            machine.stop()
            with pytest.raises(TpmError, match="does not come back"):
                await thread.run(Tpm.banks)
            assert tuple(slept) == PAUSES_S
            assert ["does not come back" in str(end) for end in ends] == [True]

    asyncio.run(scenario())


def test_several_that_notice_the_loss_open_the_tpm_once(
    machine: SoftwareTpm, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        with Tpm.open(machine.tcti) as tpm, ThreadPoolExecutor(1) as executor:
            ek = tpm.create_ek("ecc")
            ak = tpm.load_ak(ek, tpm.create_ak(ek, "ecdsa", "ecc", SHA256))
            thread = RecoveringTpmThread(tpm, executor, lambda _: None)
            machine.restart()
            selection = PcrSelection(SHA256, frozenset({DATA_PCR}))
            quotes = (thread.run(lambda tpm: tpm.quote(ak, selection, b"nonce", "key")) for _ in range(5))
            assert len(await asyncio.gather(*quotes)) == 5

    caplog.set_level("INFO")
    asyncio.run(scenario())
    assert caplog.text.count("the TPM is open again") == 1


def test_a_key_that_is_lost_again_and_again_ends_the_agent(machine: SoftwareTpm) -> None:
    ends: list[TpmError] = []

    def lose(_tpm: Tpm) -> None:
        raise TpmLost("TPM2_Quote failed")

    async def scenario() -> None:
        with Tpm.open(machine.tcti) as tpm, ThreadPoolExecutor(1) as executor:
            thread = RecoveringTpmThread(tpm, executor, ends.append, pauses_s=(0,))
            for _ in range(4):
                with pytest.raises(TpmError):
                    await thread.run(lose)

    asyncio.run(scenario())
    assert len(ends) == 1


def test_another_tpm_in_its_place_is_refused(
    machine: SoftwareTpm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = SoftwareTpm.manufactured(tmp_path_factory.mktemp("other"), with_ek_certificate=False)
    with Tpm.open(machine.tcti) as tpm:
        ek = tpm.create_ek("ecc")
        ak = tpm.load_ak(ek, tpm.create_ak(ek, "ecdsa", "ecc", SHA256))
        tpm.reopen()
        tpm.quote(ak, PcrSelection(SHA256, frozenset({DATA_PCR})), b"nonce", "key")
        machine.stop()
        machine.home = other.home
        machine.start()
        with pytest.raises(TpmError, match="another TPM"):
            tpm.reopen()
        with pytest.raises(TpmLost):
            tpm.quote(ak, PcrSelection(SHA256, frozenset({DATA_PCR})), b"nonce", "key")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0xA000A, True),  # TCTI: input/output error
        (0xB0003, True),  # the resource manager's own
        (0x70007, True),  # ESYS: bad sequence, after a command that was cut off
        (0x70010, False),
        (0x910, True),  # TPM_RC_REFERENCE_H0
        (0xC0910, True),
        (0x18B, True),  # TPM_RC_HANDLE, first handle
        (0x28B, True),
        (0x100, True),  # TPM_RC_INITIALIZE
        (0x101, False),  # TPM_RC_FAILURE
        (0x902, False),  # TPM_RC_OBJECT_MEMORY
        (0x98E, False),  # TPM_RC_AUTH_FAIL, session 1
        (0x2C4, False),  # TPM_RC_VALUE, parameter 2
        (0x1DF, False),  # TPM_RC_INTEGRITY
    ],
)
def test_losses_are_told_from_refusals(code: int, expected: bool) -> None:
    assert is_loss(code) is expected
