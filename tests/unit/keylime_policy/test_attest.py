"""Evidence that was kept is appraised again; what is missing is not accepted."""

import shutil
import sys
from pathlib import Path

import pytest

from keylime_policy.attest import main
from tests.captures import Stage, capture

ONE = capture("direct-efistub")
AGENT, OTHER = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000", "other"


def keep(folder: Path, stage: Stage) -> Path:
    """A folder with the evidence of a stage."""
    folder.mkdir(parents=True)
    for part in ("msg", "sig", "pcrs"):
        shutil.copy(stage.path / f"quote_ecdsa_sha256.{part}", folder / f"quote.{part}")
    shutil.copy(ONE.path / "ak_ecdsa.tpm2b_public", folder / "ak.tpm2b_public")
    shutil.copy(stage.path / "ascii_runtime_measurements", folder)
    (folder / "nonce").write_text(f"{stage.nonce}\n")
    return folder


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    keep(tmp_path / AGENT / "2026-02-03T04:05:06Z", ONE.stage("s1-clean"))
    keep(tmp_path / OTHER / "2026-02-04T00:00:00Z", ONE.stage("s1-clean"))
    return tmp_path


def attest(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["keylime_attest", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_what_was_kept_is_accepted_again(
    evidence: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attest(monkeypatch, "--evidence", evidence) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "All agents were in attested state (2 agents, 2 attestations)"
    assert out.count("; nothing judged: no policy was kept") == 2
    assert attest(monkeypatch, "--evidence", evidence, "-u", AGENT, "-e", "2026-02-03T04:05:06Z") == 0
    assert "(1 agents, 1 attestations)" in capsys.readouterr().out


def test_what_is_not_accepted_is_named(
    evidence: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evidence / OTHER / "2026-02-04T00:00:00Z"
    (folder / "nonce").write_text("another")
    assert attest(monkeypatch, "--evidence", evidence) == 1
    out = capsys.readouterr().out
    assert f"Agent {OTHER} was NOT in attested state at 2026-02-04T00:00:00+00:00: " in out
    assert out.splitlines()[-1] == f"Agents that were not in attested state: {OTHER} (1)"
    (folder / "nonce").unlink()
    assert attest(monkeypatch, "--evidence", evidence) == 1
    assert "its evidence has no nonce" in capsys.readouterr().out
    (folder / "nonce").write_text("another")
    (folder / "runtime-policy.json").write_text("{")
    assert attest(monkeypatch, "--evidence", evidence) == 1
    assert "runtime-policy.json: " in capsys.readouterr().out
    (folder / "mb-policy-name").write_text("invented")
    assert attest(monkeypatch, "--evidence", evidence) == 1
    assert "its mb-policy-name is none of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-u", "gone"), "there is no attestation of agent gone"),
        (("-s", "2026-03-01"), "there is no attestation of any agent from 2026-03-01 to last"),
        (("-s", "yesterday"), "--start yesterday: expected a time"),
        (("-e", "first"), "--end first: expected a time"),
    ],
)
def test_nothing_found_is_no_success(
    evidence: Path,
    arguments: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert attest(monkeypatch, "--evidence", evidence, *arguments) == 1
    assert reason in capsys.readouterr().err


def test_a_folder_that_is_no_time_is_named(
    evidence: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (evidence / AGENT / "latest").mkdir()
    assert attest(monkeypatch, "--evidence", evidence) == 1
    assert "latest: the name of the folder is no time" in capsys.readouterr().err
    assert attest(monkeypatch, "--evidence", evidence / "gone") == 1
    assert "no such directory" in capsys.readouterr().err


def test_without_evidence_the_status_is_as_scripts_know_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attest(monkeypatch) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "nothing was looked at" in err
