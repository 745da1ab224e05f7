import json

import pytest

from keylime.errors import PolicyError
from keylime.ima.keyrings import keyring_of
from keylime.policy.allowlist import convert_allowlist, read_excludes, upgrade_runtime_policy
from keylime.policy.runtime import EMPTY_POLICY, parse_runtime_policy
from tests.captures import IMA_KEYS_DIRECTORY

A, B = "ab" * 32, "cd" * 32


def test_a_flat_allowlist_becomes_a_policy_of_the_same_meaning() -> None:
    flat = f"{A}  boot_aggregate\n\n{A}\t/usr/bin/a\n{B} /usr/bin/a\n"
    flat += f"{A} /opt/two words\n{B} %keyring:.ima\n{A}\n"
    document = json.loads(convert_allowlist(flat, "# comment\n^/var/ \n\n/x$\n", timestamp="now"))
    assert document["meta"] == {"version": 1, "generator": 3, "timestamp": "now"}
    assert document["digests"] == {"boot_aggregate": [A], "/usr/bin/a": [A, B], "/opt/two_words": [A]}
    assert document["keyrings"] == {".ima": [B]}
    assert document["excludes"] == ["^/var/", "/x$"]
    assert parse_runtime_policy(json.dumps(document)).demands_ima


@pytest.mark.parametrize("line", ["# a comment", f"{A.upper()} /a", "md5 /a", f"\\{A}  /a\\nb"])
def test_a_line_that_begins_with_no_digest_is_refused_by_its_number(line: str) -> None:
    with pytest.raises(PolicyError, match="line 2"):
        convert_allowlist(f"{A} /a\n{line}\n")


def test_a_json_allowlist_is_converted_with_its_rules() -> None:
    given = {
        "meta": {"x": 1},
        "release": 7,
        "hashes": {"/a": [A]},
        "keyrings": {"k": [B]},
        "excludes": [],
        "ima": None,
    }
    document = json.loads(convert_allowlist(json.dumps(given), "/e$"))
    assert document["meta"] == {"version": 1, "generator": 3}
    assert (document["release"], document["digests"], document["keyrings"]) == (7, {"/a": [A]}, {"k": [B]})
    assert document["ima"] == json.loads(EMPTY_POLICY)["ima"]
    assert document["excludes"] == ["/e$"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"digests": {"/a": [A]}},
        {"hashes": {}},
        {"hashes": {"/a": [A]}, "digests": {}},
        {"hashes": {"/a": ["x"]}},
        {"hashes": {"/a": [A]}, "ima": {"dm_policy": None}},
    ],
)
def test_json_of_another_format_is_refused(given: object) -> None:
    with pytest.raises(PolicyError):
        convert_allowlist(json.dumps(given))


def test_keys_join_those_that_are_there() -> None:
    first, second = (
        keyring_of([(IMA_KEYS_DIRECTORY / f"ima-{kind}.pub.pem").read_bytes()]) for kind in ("rsa", "ec")
    )
    once = convert_allowlist(f"{A} /a", keys=first)
    twice = upgrade_runtime_policy(once, keys=second)
    keys = parse_runtime_policy(twice).verification_keys.keys
    assert keys == (*first.keys, *second.keys)


def test_a_current_policy_is_only_extended() -> None:
    current = {**json.loads(EMPTY_POLICY), "excludes": ["^/a$"]}
    assert json.loads(upgrade_runtime_policy(json.dumps(current), "^/b$")) == {
        **current,
        "excludes": ["^/a$", "^/b$"],
    }


@pytest.mark.parametrize("meta", [None, {}, {"version": 0}])
def test_an_older_policy_is_completed(meta: object) -> None:
    document = json.loads(upgrade_runtime_policy(json.dumps({"meta": meta, "digests": {"/a": [A]}})))
    assert document == {
        **json.loads(EMPTY_POLICY),
        "meta": {"version": 1, "generator": 2},
        "digests": {"/a": [A]},
    }


def test_a_bad_exclude_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"excludes\[0\]"):
        convert_allowlist(f"{A} /a", "(\n")


def test_comments_in_exclude_files_begin_a_line() -> None:
    assert read_excludes("a#b\n  # c\n\n /d \n") == ["a#b", "/d"]
