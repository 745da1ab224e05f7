"""Commands on runtime policies that are there: what they print, write and return."""

import json
from pathlib import Path
from typing import Any

import pytest

from keylime.errors import ConfigError
from keylime.ima.runtime_policy import EMPTY_POLICY, parse_runtime_policy
from keylime_policy.edit import (
    Conversion,
    FailureUpdate,
    convert_policy,
    lint_file,
    merge_policies,
    show,
    show_difference,
    update_from_failure,
)
from keylime_policy.messages import Messages

MESSAGES = Messages("test")
ONE, OTHER = "ab" * 32, "cd" * 32


def policy(path: Path, **members: Any) -> str:
    document = {**json.loads(EMPTY_POLICY), "digests": {"/usr/bin/a": [ONE]}, **members}
    path.write_text(json.dumps(document, indent=1))
    return str(path)


@pytest.fixture
def old(tmp_path: Path) -> str:
    return policy(tmp_path / "old.json", excludes=["/run/x/"])


@pytest.fixture
def new(tmp_path: Path) -> str:
    return policy(tmp_path / "new.json", digests={"/usr/bin/a": [OTHER], "/usr/bin/b c": [ONE]})


def test_a_policy_is_shown_whole(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(old, as_json=False) == 0
    shown = capsys.readouterr().out
    assert f"digests  {ONE}  /usr/bin/a\n" in shown
    assert "exclude  /run/x/\n" in shown
    assert "signed                no\n" in shown
    assert show(old, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["digests"] == {"/usr/bin/a": [ONE]}


def test_a_difference_is_shown_by_rule(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_difference(old, new, as_json=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"- digests  {ONE}  /usr/bin/a",
        f"+ digests  {OTHER}  /usr/bin/a",
        f"+ digests  {ONE}  /usr/bin/b c",
        "- exclude  /run/x/",
    ]
    assert show_difference(old, new, as_json=True) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["removed"] == {"digests": {"/usr/bin/a": [ONE]}, "excludes": ["/run/x/"]}
    assert show_difference(old, old, as_json=False) == 0
    assert capsys.readouterr().out == ""


def test_merging_allows_what_either_allows(old: str, new: str, tmp_path: Path) -> None:
    output = tmp_path / "merged.json"
    assert merge_policies([old, new], str(output), MESSAGES) == 0
    merged = json.loads(output.read_text())
    assert merged["digests"] == {"/usr/bin/a": [ONE, OTHER], "/usr/bin/b c": [ONE]}
    assert merged["excludes"] == ["/run/x/"]
    sha256 = json.loads(EMPTY_POLICY)["ima"] | {"log_hash_alg": "sha256"}
    with pytest.raises(ConfigError, match=r"other.json: ima.log_hash_alg: sha1 and sha256 cannot be merged"):
        merge_policies([old, policy(tmp_path / "other.json", ima=sha256)], None, MESSAGES)


@pytest.mark.parametrize(
    "text",
    [
        f"{ONE}  /usr/bin/a\n",
        json.dumps({"hashes": {"/usr/bin/a": [ONE]}}),
        json.dumps({**json.loads(EMPTY_POLICY), "meta": {"version": 0}, "digests": {"/usr/bin/a": [ONE]}}),
        json.dumps({**json.loads(EMPTY_POLICY), "digests": {"/usr/bin/a": [ONE]}}),
    ],
)
def test_every_old_form_is_converted(text: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(text)
    (tmp_path / "ex").write_text("# x\n/run/x/\n")
    output = tmp_path / "out"
    order = Conversion(
        policy=str(tmp_path / "in"), excludes=str(tmp_path / "ex"), keys=(), output=str(output)
    )
    assert convert_policy(order, MESSAGES) == 0
    made = parse_runtime_policy(output.read_text())
    assert made.to_document()["digests"] == {"/usr/bin/a": [ONE]}
    assert made.excludes.sources == ("/run/x/",)
    assert made.meta.version == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{\n "digests":\n {"/a": ["x"]}}', r"in line 3: digests"),
        (EMPTY_POLICY.replace('"digests": {}', '"digests":\n\n{"/a": ["x"]}'), r"in line 3: digests\['/a'\]"),
        ("# nothing\n", "line 1: '#' is not a digest"),
        ("xyz  /a\n", "line 1"),
    ],
)
def test_what_cannot_be_converted_is_named_with_its_line(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(text)
    order = Conversion(policy=str(tmp_path / "in"), excludes=None, keys=(), output=None)
    with pytest.raises(ConfigError, match=f"POLICY .*{reason}"):
        convert_policy(order, MESSAGES)


def failure(path: Path, *findings: dict[str, Any], nested: bool = False) -> str:
    full = [{"severity": "x", "explanation": "why", "rule": "digests", **one} for one in findings]
    document: Any = {"findings": full}
    path.write_text(json.dumps({"results": {"id": {"last": [document]}}} if nested else document))
    return str(path)


NEW = {"event_id": "ima.validation.ima-ng.not_in_allowlist", "path": "/usr/bin/new", "observed": OTHER}
BROKEN = {"event_id": "ima.validation.tomtou", "path": "/usr/bin/x", "rule": None}


@pytest.mark.parametrize("nested", [False, True])
def test_findings_become_digests(
    old: str, tmp_path: Path, nested: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    order = FailureUpdate(
        policy=old,
        findings=failure(tmp_path / "f", NEW, nested=nested),
        only=(),
        force=False,
        output=str(output),
    )
    assert update_from_failure(order, MESSAGES) == 0
    document = json.loads(output.read_text())
    assert document["digests"] == {"/usr/bin/a": [ONE], "/usr/bin/new": [OTHER]}
    assert document["excludes"] == ["/run/x/"]
    assert f"+ digests  {OTHER}  /usr/bin/new" in capsys.readouterr().err


def test_what_no_policy_answers_is_told_by_the_status(
    old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def update(*findings: dict[str, Any], only: tuple[str, ...] = ()) -> int:
        path = failure(tmp_path / "f", *findings)
        order = FailureUpdate(policy=old, findings=path, only=only, force=False, output=str(tmp_path / "out"))
        return update_from_failure(order, MESSAGES)

    assert update(NEW, BROKEN) == 3
    assert "not taken: why" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="nothing that would change the policy"):
        update(BROKEN)
    with pytest.raises(ConfigError, match="about /usr/bin/other"):
        update(NEW, only=("/usr/bin/other",))
    with pytest.raises(ConfigError, match="has no findings"):
        update()


def test_the_linter_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = policy(
        tmp_path / "p.json", digests={"/usr/bin/a": [ONE], "usr/bin/b": [ONE]}, excludes=["/x$", ".*"]
    )
    lines = Path(path).read_text().splitlines()
    excludes, allowlist = tmp_path / "ex", tmp_path / "al"
    excludes.write_text("# all\n\n/usr/bin/a$\n")
    assert lint_file(path, str(excludes), as_json=False) == 1
    out = capsys.readouterr().out.splitlines()
    name, everything, listed = (line.split(": ", 1)[0] for line in out)
    assert "usr/bin/b" in lines[int(name.rpartition(":")[2]) - 1]
    assert lines[int(everything.rpartition(":")[2]) - 1].strip() == '".*"'
    assert listed == f"{excludes}:3"
    allowlist.write_text(f"{ONE}  /usr/bin/a\n{ONE} *usr/b\n")
    assert lint_file(str(allowlist), None, as_json=True) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["file"], row["line"]) == (str(allowlist), 2)
    assert lint_file(str(excludes), None, as_json=False) == 0
    excludes.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        lint_file(str(excludes), None, as_json=False)
    excludes.write_text("# all\n/run/x\n")
    assert lint_file(str(excludes), None, as_json=False) == 1
    assert capsys.readouterr().out.startswith(f"{excludes}:2: '/run/x' has no end")
