"""Policies made of lists, older policies and key files."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from keylime.errors import ConfigError
from keylime.policy.runtime import parse_runtime_policy
from keylime_tenant.policy_tool.create_runtime import (
    RuntimeSources,
    create_runtime_policy,
    legacy_allowlist,
)
from keylime_tenant.policy_tool.messages import Messages
from keylime_tenant.policy_tool.offline import Approval, Outcome, StoredEvidence, judge
from tests.captures import IMA_KEYS_DIRECTORY, Stage, capture, stages

NOW = datetime.datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)
STAGE = capture("direct-efistub").stage("s1-clean")
LIST = STAGE.path / "ascii_runtime_measurements"
DIGEST = "ab" * 32


def create(**sources: Any) -> dict[str, Any]:
    texts: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value for name, value in sources.items()
    }
    return create_runtime_policy(RuntimeSources(**texts), Messages("test"), NOW)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
@pytest.mark.parametrize("form", ["ascii", "binary"])
def test_a_machine_is_accepted_by_the_policy_made_of_its_list(stage: Stage, form: str) -> None:
    document = create(ima_list=stage.path / f"{form}_runtime_measurements", keyrings=True, buffers=True)
    approval = Approval(runtime_policy=parse_runtime_policy(json.dumps(document)), ignore_tomtou=True)
    assert judge(StoredEvidence(ima_list=stage.ascii_list), approval).outcome is Outcome.ACCEPTED


def test_the_document_is_current_sorted_and_dated(tmp_path: Path) -> None:
    allowlist = written(tmp_path / "al", f"{'cd' * 32}  /b\n{DIGEST}  /b\n{DIGEST}  /a b\n")
    document = create(allowlist=allowlist)
    assert document["meta"] == {"version": 1, "generator": 3, "timestamp": "2026-02-03 04:05:06.000007"}
    assert list(document["digests"].items()) == [("/a_b", [DIGEST]), ("/b", [DIGEST, "cd" * 32])]


def test_a_base_policy_is_kept_and_extended(tmp_path: Path) -> None:
    base = create(
        ima_list=LIST, ignored_keyrings=(".builtin",), ima_keys=(str(IMA_KEYS_DIRECTORY / "ima-rsa.crt.der"),)
    )
    base["release"] = 4
    base["ima"]["log_hash_alg"] = "sha256"
    excludes = written(tmp_path / "ex", "# not an expression\n\n  /var/.*  \n")
    extended = create(
        base_policy=written(tmp_path / "base", json.dumps(base)),
        allowlist=written(tmp_path / "al", f"{DIGEST}  /init\n"),
        excludes=excludes,
        ima_keys=(str(IMA_KEYS_DIRECTORY / "ima-ec.pub.pem"), str(IMA_KEYS_DIRECTORY / "ima-rsa.crt.pem")),
    )
    assert DIGEST in extended["digests"]["/init"]
    assert len(extended["digests"]["/init"]) == 2
    assert extended["excludes"] == ["/var/.*"]
    assert extended["ima"] == base["ima"]
    assert extended["release"] == 4
    assert len(parse_runtime_policy(json.dumps(extended)).verification_keys.keys) == 2


def test_digests_and_buffers_of_a_list_are_taken_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    stage = capture("direct-critical-data-4banks").stage("s4-device-mapper")
    path = stage.path / "ascii_runtime_measurements"
    assert create(ima_list=path)["ima-buf"] == {}
    assert "--ima-buf takes them in" in capsys.readouterr().err
    only_buffers = create(ima_list=path, hashes=False, buffers=True)
    assert only_buffers["digests"] == {}
    assert "dm_table_load" in only_buffers["ima-buf"]


def test_a_policy_that_allows_nothing_is_remarked(capsys: pytest.CaptureFixture[str]) -> None:
    assert create()["digests"] == {}
    assert "allows nothing" in capsys.readouterr().err


def test_the_old_form_lists_boot_aggregate_first() -> None:
    lines = legacy_allowlist(create(ima_list=LIST)).splitlines()
    assert len(lines) == len(set(lines)) == STAGE.entries
    assert lines[0] == f"{STAGE.expected['boot_aggregate']['digest']}  boot_aggregate"
    assert all(line[64:66] == "  " for line in lines)


@pytest.mark.parametrize(
    ("option", "field", "text", "reason"),
    [
        ("--allowlist", "allowlist", "xy  /a\n", "line 1: 'xy' is not a digest"),
        ("--allowlist", "allowlist", f"{'ab' * 22}  /a\n", "44 hex digits"),
        ("--excludelist", "excludes", "/a\n[\n", r"expressions\[1\]"),
        ("--base-policy", "base_policy", '{"meta": {}}', "missing"),
        ("--ima-measurement-list", "ima_list", "10 x\n", "line 1"),
    ],
)
def test_a_bad_source_is_named(tmp_path: Path, option: str, field: str, text: str, reason: str) -> None:
    path = written(tmp_path / "source", text)
    with pytest.raises(ConfigError, match=f"{option} {path}: .*{reason}"):
        create(**{field: path})


def test_sources_of_different_algorithms_are_refused(tmp_path: Path) -> None:
    allowlist = written(tmp_path / "al", f"{'ab' * 20}  /a\n")
    with pytest.raises(ConfigError, match=r"sha256 digests, but .* sha1"):
        create(allowlist=allowlist, ima_list=LIST)
    with pytest.raises(ConfigError, match="--algo has sha384"):
        create(ima_list=LIST, algorithm="sha384")


def test_a_file_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--add-ima-signature-verification-key .*holds no certificate"):
        create(ima_keys=(str(LIST),))
