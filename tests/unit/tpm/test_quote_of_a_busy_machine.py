"""A quote of PCR 10 while the kernel extends it faster than PCRs are read (and what that cannot excuse)."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.errors import TpmError
from keylime.ima.measurement_list import ima_ng_line, parse_line
from keylime.ima.moving_pcr import RunningReplay, later_values
from keylime.ima.replay import ExtendMode, extend_value
from keylime.ima.replay import replay as replay_list
from keylime.ima.templates import FileDigest
from keylime.tpm.device import QuoteParts
from keylime.tpm.pcr import DATA_PCR, IMA_PCR, PcrSelection, extend
from keylime_agent.evidence import LogFile
from keylime_agent.ima_list import ImaList
from tests.effort import examples
from tests.fakes.busy_machine import BANK, BusyMachine, BusyTpm, all_values
from tests.fakes.counted_calls import counted_calls

PUBKEY = "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n"
ALL = PcrSelection(BANK, frozenset({*range(16)}))


def quoted(machine: BusyMachine, path: Path, selection: PcrSelection = ALL) -> QuoteParts:
    ima = ImaList(LogFile(path))
    assert ima.open()
    try:
        tpm = BusyTpm(machine)
        return tpm.quote(tpm.attestation_key(), selection, b"nonce", PUBKEY, ima.tail())
    finally:
        ima.close()


@pytest.mark.parametrize("mode", list(ExtendMode))
@pytest.mark.parametrize("burst", [0, 1, 2, 40])
@pytest.mark.parametrize("before", [0, 1, 31, 33, 200])
def test_a_quote_succeeds_however_fast_pcr_10_moves(
    tmp_path: Path, mode: ExtendMode, burst: int, before: int
) -> None:
    for seed in range(3):
        path = tmp_path / f"list-{seed}"
        machine = BusyMachine(path, burst=burst, mode=mode, seed=seed)
        machine.measure(before)
        parts = quoted(machine, path)
        assert machine.quoted is not None
        assert parts.pcrs == machine.quoted
        values = all_values(path, BANK, mode)
        assert parts.pcrs.values[IMA_PCR] in values, "the list accounts for the value in the blob"


def test_without_a_list_a_moving_pcr_ends_in_an_error(tmp_path: Path) -> None:
    machine = BusyMachine(tmp_path / "list", burst=3)
    tpm = BusyTpm(machine)
    with pytest.raises(TpmError, match="the PCRs changed"):
        tpm.quote(tpm.attestation_key(), ALL, b"nonce", PUBKEY)


def test_pcr_10_is_not_explained_by_anything_but_the_list(tmp_path: Path) -> None:
    class Meddler(BusyMachine):
        def quote(self, handle: Any, selection: Any, nonce: bytes) -> Any:
            self.extend(IMA_PCR, bytes(32))
            return super().quote(handle, selection, nonce)

    with pytest.raises(TpmError, match="the PCRs changed"):
        quoted(Meddler(tmp_path / "list", burst=3), tmp_path / "list")


def test_another_program_in_pcr_16_costs_an_attempt_and_nothing_else(tmp_path: Path) -> None:
    class Disturbed(BusyMachine):
        disturbances = 2

        def pcr_extend(self, index: int, digests: Any) -> None:
            super().pcr_extend(index, digests)
            if self.disturbances:
                self.disturbances -= 1
                self.extend(DATA_PCR, bytes(32))

    machine = Disturbed(tmp_path / "list", burst=9)
    assert quoted(machine, tmp_path / "list").pcrs == machine.quoted


def test_lines_that_cannot_be_read_end_the_search() -> None:
    assert list(later_values([b"10 what", b"11 else"], 0, bytes(32), BANK)) == []
    assert list(later_values([], 0, bytes(32), BANK)) == []
    assert list(later_values([], 7, bytes(32), BANK)) == []


@pytest.mark.parametrize("mode", list(ExtendMode))
@pytest.mark.parametrize("before", [None, b"\x17" * 32])
def test_quotes_go_on_where_the_last_one_was(tmp_path: Path, mode: ExtendMode, before: bytes | None) -> None:
    path = tmp_path / "list"
    machine = BusyMachine(path, burst=30, mode=mode, before=before)
    machine.measure(100)
    ima = ImaList(LogFile(path))
    assert ima.open()
    tpm = BusyTpm(machine)
    for _ in range(6):
        machine.measure(50)
        parts = tpm.quote(tpm.attestation_key(), ALL, b"nonce", PUBKEY, ima.tail())
        assert parts.pcrs == machine.quoted
    ima.close()


def test_a_list_that_is_written_anew_is_searched_anew(tmp_path: Path) -> None:
    path = tmp_path / "list"
    ima = ImaList(LogFile(path))
    former = BusyMachine(path, burst=5)
    former.measure(300)
    assert ima.open()
    for machine in (former, BusyMachine(path, burst=5, seed=1, before=b"\x01" * 32)):
        if machine is not former:
            path.write_bytes(b"")
            machine.measure(300)
        for _ in range(2):
            tpm = BusyTpm(machine)
            parts = tpm.quote(tpm.attestation_key(), ALL, b"nonce", PUBKEY, ima.tail())
            assert parts.pcrs == machine.quoted
    ima.close()


def lines_of(count: int, seed: int) -> list[bytes]:
    """A list with entries of other PCRs among those of PCR 10."""
    random = Random(seed)  # noqa: S311
    return [
        b"%d" % random.choice((10, 10, 10, 11)) + ima_ng_line(FileDigest("sha256", bytes(32)), f"/{n}")[2:]
        for n in range(count)
    ]


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(0, 40), st.data(), st.sampled_from(ExtendMode), st.integers(0, 3))
def test_the_running_replay_gives_what_the_search_gives(
    count: int, data: st.DataObject, mode: ExtendMode, seed: int
) -> None:
    lines = lines_of(count, seed)
    held = [bytes(32)]
    for line in lines:
        entry = parse_line(line)
        held.append(extend(BANK, held[-1], extend_value(entry, BANK, mode)) if entry.pcr == 10 else held[-1])
    replay, text = RunningReplay(BANK), b"".join(line + b"\n" for line in lines)
    at = 0
    while at < count:
        at = data.draw(st.integers(at, count))
        expected = {value for value in held[at:] if value != held[at]}
        found = replay.values_after(text[replay.offset :], held[at])
        assert found is not None
        if held[at] != held[0]:  # then the mode is known, and nothing else is guessed
            assert {value for value in found if value != held[at]} == expected
        assert expected <= set(found)
        assert expected <= set(later_values(lines, at, held[at], BANK))
        at += 1
    assert replay.values_after(text[replay.offset :], b"\x42" * 32) is None


def test_the_work_of_a_replay_grows_with_the_burst_and_not_with_its_square() -> None:
    def work(burst: int) -> int:
        lines = [ima_ng_line(FileDigest("sha256", bytes(32)), f"/{number}") for number in range(burst)]
        text = b"".join(line + b"\n" for line in lines)
        value = replay_list([parse_line(line) for line in lines[: burst // 2]], BANK)
        replay = RunningReplay(BANK)
        with counted_calls() as calls:
            found = replay.values_after(text, value)
            assert found is not None
            assert len(found) == burst - burst // 2
        return calls.count

    assert work(1600) < 5 * work(400)
