import json

import pytest

from keylime.errors import PolicyError
from keylime.ima.allowlist import (
    convert_allowlist,
    is_json_allowlist,
    read_excludes,
    unread_members,
    upgrade_runtime_policy,
)
from keylime.ima.keyrings import keyring_of
from keylime.ima.runtime_policy import EMPTY_POLICY, parse_runtime_policy
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


@pytest.mark.parametrize(
    "line",
    [
        "# a comment",
        "nothing",
        f"{A},/a",
        "QUJD",
        "BLAKE2b (/a) = " + A,
        f"SHA1 (/a) = {A}",
        f"{A.upper()} /a",
        "md5 /a",
        f"sha256:{A.upper()} /a",
    ],
)
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
        {"hashes": {"/a": [A]}, "ima": [1]},
        {"hashes": {"/a": [f"sha1:{A}"]}},
    ],
)
def test_json_of_another_format_is_refused(given: object) -> None:
    with pytest.raises(PolicyError):
        convert_allowlist(json.dumps(given))


def test_members_that_old_formats_did_not_have_get_their_defaults() -> None:
    old = {"meta": {"version": 6}, "hashes": {"/a": [A]}, "ima": {"dm_policy": None}}
    defaults = json.loads(EMPTY_POLICY)["ima"]
    assert json.loads(convert_allowlist(json.dumps(old)))["ima"] == defaults
    older = {"meta": {"version": 0}, "digests": {"/a": [A]}, "ima": {"ignored_keyrings": ["x"]}}
    assert json.loads(upgrade_runtime_policy(json.dumps(older)))["ima"] == {
        **defaults,
        "ignored_keyrings": ["x"],
    }


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (f"{A} */usr/bin/a", "/usr/bin/a"),  # sha256sum -b
        (f"{A}  ./usr/bin/a", "/usr/bin/a"),
        (f"{A} *./usr/bin/a", "/usr/bin/a"),
        (f"{A}  /usr/bin/a\r", "/usr/bin/a"),
        (f"sha256:{A}  /usr/bin/a", "/usr/bin/a"),
        (f"\\{A}  /a\\nb\\\\c", "/a\nb\\c"),  # sha256sum escapes line feeds and backslashes
        (f"SHA256 (/usr/bin/a) = {A}", "/usr/bin/a"),  # sha256sum --tag
        (f"\\SHA256 (/a\\nb) = {A}", "/a\nb"),
        (f"SHA256 (/usr/bin/a (b) = c) = {A}\r", "/usr/bin/a_(b)_=_c"),
        (f"SHA256(./usr/bin/a)= {A}", "/usr/bin/a"),  # openssl dgst
        (f"SHA2-256(/usr/bin/a)= {A}", "/usr/bin/a"),
        (f"SM3 (/usr/bin/a) = {A}", "/usr/bin/a"),
        (f"{A}  *", "*"),
        (f"{A}  usr/bin/a", "usr/bin/a"),
    ],
)
def test_lists_of_checksum_tools_are_read_as_they_are_meant(line: str, name: str) -> None:
    policy = parse_runtime_policy(convert_allowlist(f"{A}  boot_aggregate\n{line}\n"))
    assert policy.digests == {"boot_aggregate": (bytes.fromhex(A),), name: (bytes.fromhex(A),)}
    assert bool(policy.warnings) == (not name.startswith("/"))


def test_digests_that_name_their_algorithm_are_written_without_it() -> None:
    assert json.loads(convert_allowlist(f"sha256:{A}  /a"))["digests"] == {"/a": [A]}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"/usr/bin/a": [A]},
        {"name": "one", "runtime_policy": "{}"},
        {"code": 200, "status": "Success", "results": {"runtime_policy": "{}"}},
        {"allowlist": [], "exclude": []},
        {"meta": {"version": 0}, "release": 1},
    ],
)
def test_what_is_no_policy_does_not_become_an_empty_one(given: object) -> None:
    with pytest.raises(PolicyError, match="has none of its members"):
        upgrade_runtime_policy(json.dumps(given))


@pytest.mark.parametrize("wrapper", ["allowlist", "whitelist"])
@pytest.mark.parametrize(
    "inner",
    [{"/a": [A]}, {"meta": {"version": 5}, "release": 3, "hashes": {"/a": [A]}, "keyrings": {".ima": [B]}}],
)
def test_a_list_that_was_sent_with_its_exclude_list_is_converted_with_it(
    wrapper: str, inner: dict[str, object]
) -> None:
    given = json.dumps({wrapper: inner, "exclude": ["^/tmp/"]})
    assert is_json_allowlist(json.loads(given))
    document = json.loads(convert_allowlist(given, "^/var/"))
    assert document["digests"] == {"/a": [A]}
    assert document["excludes"] == ["^/tmp/", "^/var/"]
    assert document["keyrings"] == inner.get("keyrings", {})
    assert document["release"] == inner.get("release", 0)
    assert not list(unread_members(given))
    with pytest.raises(PolicyError, match="exclude: expected a list"):
        convert_allowlist(json.dumps({wrapper: inner, "exclude": "^/tmp/"}))


def test_members_that_are_not_read_are_named() -> None:
    given = json.dumps({"meta": {}, "hashes": {"/a": [A]}, "exclude": ["^/tmp"], "note": 1})
    assert sorted(unread_members(given)) == [
        "'exclude' is not read: it is called 'excludes' in policies",
        "'note' is not read",
    ]
    assert not list(unread_members(EMPTY_POLICY))
    assert not list(unread_members(f"{A}  /a"))


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


@pytest.mark.parametrize(
    ("old", "new"),
    [("hashes", "digests"), ("exclude", "excludes"), ("keyring", "keyrings")],
)
def test_l5_an_older_policy_of_two_formats_is_refused(old: str, new: str) -> None:
    given = {"meta": {"version": 0}, old: {"/a": [A]}, new: {"/b": [B]}}
    with pytest.raises(PolicyError, match=old):
        upgrade_runtime_policy(json.dumps(given))
    with pytest.raises(PolicyError, match=old):
        convert_allowlist(json.dumps({**given, "hashes": {"/a": [A]}}))


@pytest.mark.parametrize("old", ["exclude", "keyring", "verification_keys"])
def test_an_older_policy_of_the_old_format_alone_is_completed_without_what_is_not_read(old: str) -> None:
    upgraded = json.loads(upgrade_runtime_policy(json.dumps({"digests": {"/a": [A]}, old: {"x": [B]}})))
    assert upgraded["digests"] == {"/a": [A]}
    assert old not in upgraded


def test_a_bad_exclude_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"excludes\[0\]"):
        convert_allowlist(f"{A} /a", "(\n")


def test_comments_in_exclude_files_begin_a_line() -> None:
    assert read_excludes("a#b\n  # c\n\n /d \n") == ["a#b", "/d"]
