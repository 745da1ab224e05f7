"""keylime_ima_emulator as a process against a real software TPM."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import parse_line, split_lines
from keylime.ima.replay import replay
from keylime.tpm.device import Tpm
from keylime.tpm.pcr import IMA_PCR, PcrSelection
from tests.captures import VM_DEBIAN12
from tests.fakes.forked_programs import Order, run
from tests.fakes.swtpm import SoftwareTpm

LIST = VM_DEBIAN12 / "direct-ima-ng" / "s1-clean" / "ascii_runtime_measurements"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SoftwareTpm]:
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    with SoftwareTpm.manufactured(tmp_path / "tpm", with_ek_certificate=False) as tpm:
        yield tpm


def emulate(machine: SoftwareTpm, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {"TCTI": machine.tcti, "PATH": os.environ["PATH"]}
    return run(Order("keylime_ima_emulator", tuple(map(str, arguments)), environment))


def pcr10(machine: SoftwareTpm, bank: HashAlgorithm) -> bytes:
    with Tpm.open(machine.tcti) as tpm:
        return tpm.read_pcrs(PcrSelection(bank, frozenset({IMA_PCR}))).values[IMA_PCR]


def replayed(path: Path, bank: HashAlgorithm) -> bytes:
    return replay((parse_line(line) for line in split_lines(path.read_bytes())), bank)


def test_a_kernels_list_is_followed_to_its_end_and_on(machine: SoftwareTpm, tmp_path: Path) -> None:
    lines = LIST.read_bytes().splitlines(keepends=True)
    path = tmp_path / "list"
    for count in (10, 10, 25):
        path.write_bytes(b"".join(lines[:count]))
        result = emulate(machine, "-f", path, "--once")
        assert (result.returncode, result.stderr) == (0, "")
        for bank in (HashAlgorithm.SHA1, HashAlgorithm.SHA256):
            assert pcr10(machine, bank) == replayed(path, bank)


def test_a_list_that_verifiers_would_refuse_is_warned_of(machine: SoftwareTpm, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"".join(LIST.read_bytes().splitlines(keepends=True)[1:4]))
    result = emulate(machine, "-f", path, "--once")
    assert result.returncode == 0
    assert "does not begin with boot_aggregate" in result.stderr


def test_measured_files_are_listed_and_extended(machine: SoftwareTpm, tmp_path: Path) -> None:
    path, script = tmp_path / "list", tmp_path / "a script.sh"
    script.write_text("echo hello\n")
    for _ in range(2):
        assert emulate(machine, "-f", path, "--append", script, "/bin/sh").returncode == 0
    entries = [parse_line(line) for line in split_lines(path.read_bytes())]
    assert [entry.name for entry in entries] == [
        "boot_aggregate",
        *([str(script).replace(" ", "_"), "/bin/sh"] * 2),
    ]
    assert entries[1].digest == HashAlgorithm.SHA256.digest(script.read_bytes())
    for bank in (HashAlgorithm.SHA1, HashAlgorithm.SHA256):
        assert pcr10(machine, bank) == replayed(path, bank)


def test_one_bank_can_be_chosen(machine: SoftwareTpm, tmp_path: Path) -> None:
    path = tmp_path / "list"
    assert emulate(machine, "-f", path, "-a", "sha256", "--append", "/bin/sh").returncode == 0
    assert pcr10(machine, HashAlgorithm.SHA256) == replayed(path, HashAlgorithm.SHA256)
    assert pcr10(machine, HashAlgorithm.SHA1) == bytes(20)
    result = emulate(machine, "-f", path, "-a", "sha512", "--once")
    assert result.returncode == 1
    assert "no PCR bank sha512" in result.stderr


def test_what_cannot_be_done_is_one_clear_line(machine: SoftwareTpm, tmp_path: Path) -> None:
    result = emulate(machine, "-f", tmp_path / "missing", "--once")
    assert result.returncode == 1
    assert "missing: No such file or directory" in result.stderr
    with Tpm.open(machine.tcti) as tpm:
        tpm.extend_pcr(IMA_PCR, {HashAlgorithm.SHA256: bytes(32)})
    (tmp_path / "list").write_bytes(LIST.read_bytes())
    result = emulate(machine, "-f", tmp_path / "list", "--once")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "PCR 10 does not hold a beginning of this list" in result.stderr
