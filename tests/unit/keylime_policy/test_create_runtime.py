"""Policies made of lists, older policies and key files."""

import datetime
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import Entry, parse_line, split_lines
from keylime.ima.runtime_policy import parse_runtime_policy
from keylime_policy.create_runtime import (
    RuntimeSources,
    create_runtime_policy,
    legacy_allowlist,
)
from keylime_policy.messages import Messages
from keylime_policy.offline import Approval, Conclusion, StoredEvidence, judge
from tests.captures import IMA_KEYS_DIRECTORY, Stage, capture, stages
from tests.effort import tried

NOW = datetime.datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)
STAGE = capture("direct-efistub").stage("s1-clean")
LIST = STAGE.path / "ascii_runtime_measurements"
DIGEST = "ab" * 32


def create(**sources: Any) -> dict[str, Any]:
    texts: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value for name, value in sources.items()
    }
    document, _ = create_runtime_policy(RuntimeSources(**texts), Messages("test"), NOW)
    return document


def written_below(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
@pytest.mark.parametrize("form", ["ascii", "binary"])
def test_a_machine_is_accepted_by_the_policy_made_of_its_list(stage: Stage, form: str) -> None:
    document = create(ima_list=stage.path / f"{form}_runtime_measurements", keyrings=True, buffers=True)
    approval = Approval(runtime_policy=parse_runtime_policy(json.dumps(document)), ignore_tomtou=True)
    assert judge(StoredEvidence(ima_list=stage.ascii_list), approval).outcome is Conclusion.ACCEPTED


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


def test_a_policy_is_not_made_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to make a policy of"):
        create()
    with pytest.raises(ConfigError, match=r"\(--rootfs .* gave nothing\)"):
        create(rootfs=tmp_path)


def test_a_tree_that_begins_too_deep_is_remarked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.getuid() != 0:
        pytest.skip("only files of root are hashed")
    for name in ("bin/a", "bin/b", "lib/c", "share/d", "libexec/e"):
        written_below(tmp_path / name)
    create(rootfs=tmp_path)
    assert "were they made with --rootfs /usr?" in capsys.readouterr().err


def with_column(text: bytes, column: HashAlgorithm) -> bytes:
    """The same list as kernels keep it for another bank."""
    entries = [parse_line(line) for line in split_lines(text)]
    return b"".join(
        replace_hash(
            entry, column.digest(entry.template_data) if not entry.is_violation else bytes(column.size)
        )
        for entry in entries
    )


def replace_hash(entry: Entry, column: bytes) -> bytes:
    return msgspec.structs.replace(entry, template_hash=column).to_line() + b"\n"


@pytest.mark.parametrize("column", [HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512])
@pytest.mark.parametrize("stage", tried(stages()), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_a_list_of_another_bank_is_accepted_by_its_policy(
    stage: Stage, column: HashAlgorithm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = with_column(stage.ascii_list, column)
    (tmp_path / "list").write_bytes(text)
    document = create(ima_list=tmp_path / "list", keyrings=True, buffers=True)
    assert document["ima"]["log_hash_alg"] == column.label
    assert f"has {column.label} template hashes" in capsys.readouterr().err
    approval = Approval(runtime_policy=parse_runtime_policy(json.dumps(document)), ignore_tomtou=True)
    assert judge(StoredEvidence(ima_list=text), approval).outcome is Conclusion.ACCEPTED


def test_part_of_a_list_extends_a_base_policy_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = STAGE.ascii_list.splitlines(keepends=True)
    part = tmp_path / "part"
    part.write_bytes(b"".join(lines[-3:]))
    with pytest.raises(ConfigError, match="does not begin with boot_aggregate"):
        create(ima_list=part)
    (tmp_path / "whole").write_bytes(b"".join(lines[:-3]))
    base = written(tmp_path / "base", json.dumps(create(ima_list=tmp_path / "whole")))
    assert not capsys.readouterr().err
    assert create(base_policy=base, ima_list=part)["digests"] == create(ima_list=LIST)["digests"]
    assert "does not begin with boot_aggregate" in capsys.readouterr().err


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
        ("--allowlist", "allowlist", f"{DIGEST}  /a\n{'ab' * 30}  /b\n", "line 2: .*60 hex digits"),
        ("--allowlist", "allowlist", f"{DIGEST}  /a\0{DIGEST}  /b\0", "line 1: .*NUL.*sha256sum -z"),
        ("--allowlist", "allowlist", f"\n{DIGEST}  /a\0\n", "line 2: .*NUL"),
        ("--excludelist", "excludes", "/a\n[\n", "line 2: '\\['"),
        ("--base-policy", "base_policy", '{"meta": {}}', "missing"),
        ("--ima-measurement-list", "ima_list", "10 x\n", "line 1"),
    ],
)
def test_a_bad_source_is_named(tmp_path: Path, option: str, field: str, text: str, reason: str) -> None:
    path = written(tmp_path / "source", text)
    with pytest.raises(ConfigError, match=f"{option} {path}.*{reason}"):
        create(**{field: path})


def test_all_rules_of_an_allowlist_in_json_are_taken_in(tmp_path: Path) -> None:
    old = {
        "hashes": {"/a": [DIGEST]},
        "excludes": ["/srv/.*"],
        "keyrings": {".ima": [DIGEST]},
        "ima": {"ignored_keyrings": [".machine"], "log_hash_alg": "sha256"},
        "ima-buf": {"dm_table_load": [DIGEST]},
        "release": 3,
    }
    excludes = written(tmp_path / "ex", "/var/.*\n")
    made = create(allowlist=written(tmp_path / "al", json.dumps(old)), excludes=excludes)
    assert made["excludes"] == ["/srv/.*", "/var/.*"]
    assert made["ima"] == {**old["ima"], "dm_policy": None}  # type: ignore[dict-item]
    assert (made["digests"], made["keyrings"]) == (old["hashes"], old["keyrings"])
    assert (made["ima-buf"], made["release"]) == (old["ima-buf"], 3)


def test_lines_of_an_allowlist_leave_the_rules_of_the_base_alone(tmp_path: Path) -> None:
    base = create(ima_list=LIST)
    base["ima"]["log_hash_alg"] = "sha256"
    made = create(
        base_policy=written(tmp_path / "base", json.dumps(base)),
        allowlist=written(tmp_path / "al", f"{DIGEST}  /a\n"),
    )
    assert made["ima"] == base["ima"]


def test_a_listed_name_that_is_not_utf8_is_the_one_that_a_kernel_measures(tmp_path: Path) -> None:
    path = tmp_path / "al"
    path.write_bytes(f"{DIGEST}  /usr/bin/caf\xe9 1\n".encode("latin-1") + f"{DIGEST}  /é\n".encode())
    assert list(create(allowlist=path)["digests"]) == [r"/usr/bin/caf\351_1", "/é"]


def test_sources_of_different_algorithms_are_refused(tmp_path: Path) -> None:
    allowlist = written(tmp_path / "al", f"{'ab' * 20}  /a\n")
    with pytest.raises(ConfigError, match=r"sha256 digests, but .* sha1"):
        create(allowlist=allowlist, ima_list=LIST)
    with pytest.raises(ConfigError, match="--algo has sha384"):
        create(ima_list=LIST, algorithm="sha384")


def test_a_file_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--add-ima-signature-verification-key .*holds no certificate"):
        create(ima_keys=(str(LIST),))


def test_a_fleet_of_lists_makes_one_policy_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = capture("direct-ima-ng").stages[:2]
    paths = []
    for stage in stages:
        paths.append(tmp_path / f"{stage.name}.txt")
        paths[-1].write_bytes(stage.ascii_list)
    sources = RuntimeSources(fleet=tuple(map(str, paths)), distribution="debian")
    document, status = create_runtime_policy(sources, Messages("test"), NOW)
    assert status == 0
    for stage in stages:
        single = RuntimeSources(ima_list=str(tmp_path / f"{stage.name}.txt"))
        alone, _ = create_runtime_policy(single, Messages("test"), NOW)
        for path, digests in alone["digests"].items():
            assert set(digests) <= set(document["digests"][path])
    said = capsys.readouterr().err
    assert "rules hold for all 2 machines" in said
    assert "excluded for debian, and so not judged:" in said
    assert r"/etc/.*\.dpkg-(new|tmp|old|dist|bak)$" in document["excludes"]
    assert any("/usr/local/bin/hello.sh" in line and "s1-clean.txt" in line for line in said.splitlines())
