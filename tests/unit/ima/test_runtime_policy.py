import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.ima.digest_maps import MAX_DIGESTS_PER_NAME
from keylime.ima.keyrings import keyring_of
from keylime.ima.runtime_policy import (
    EMPTY_POLICY,
    diff,
    merge,
    parse_runtime_policy,
)
from tests.captures import IMA_KEYS_DIRECTORY

A, B, C = "ab" * 32, "cd" * 32, "ef" * 20


def document(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {**json.loads(EMPTY_POLICY), "digests": {"/a": [A]}, "excludes": ["^/x/"]}
    base["meta"]["generator"] = 3
    return {**base, **changes}


def text(**changes: Any) -> str:
    return json.dumps(document(**changes))


def test_a_policy_is_compiled_to_what_it_says() -> None:
    policy = parse_runtime_policy(text(keyrings={".ima": [B]}, **{"ima-buf": {"kernel_version": [A, B]}}))
    assert policy.digests == {"/a": (bytes.fromhex(A),)}
    assert policy.keyrings == {".ima": (bytes.fromhex(B),)}
    assert policy.ima_buf == {"kernel_version": (bytes.fromhex(A), bytes.fromhex(B))}
    assert policy.log_hash_alg is HashAlgorithm.SHA1
    assert policy.is_excluded("/x/y")
    assert not policy.is_excluded("/y/x/")
    assert policy.demands_ima
    assert policy.warnings == ()


def test_the_empty_policy_demands_nothing() -> None:
    policy = parse_runtime_policy(EMPTY_POLICY)
    assert not policy.demands_ima
    assert policy.generator == 1
    assert json.loads(policy.to_json()) == json.loads(EMPTY_POLICY)


KEYS = keyring_of([(IMA_KEYS_DIRECTORY / "ima-ec.pub.pem").read_bytes()]).to_json()
RULES: list[dict[str, Any]] = [
    {"digests": {"/a": [A]}},
    {"keyrings": {".ima": [A]}},
    {"ima-buf": {"kernel_version": [A]}},
    {"verification-keys": KEYS},
    {"verification-keys": '{"pubkeys": ["AAAA"], "keyids": [1]}'},
    {
        "ima": {
            **json.loads(EMPTY_POLICY)["ima"],
            "dm_policy": {"version": 1, "match_on": "name", "rules": {}},
        }
    },
]
NO_RULES: list[dict[str, Any]] = [
    {},
    {"release": 7},
    {"excludes": ["^/x/"]},
    {"ima": {"ignored_keyrings": ["*"], "log_hash_alg": "sha256", "dm_policy": None}},
]


@pytest.mark.parametrize("generator", [0, 1])
@pytest.mark.parametrize("changes", RULES)
def test_l7_a_policy_with_rules_is_one_whoever_made_it(changes: dict[str, Any], generator: int) -> None:
    said = {**json.loads(EMPTY_POLICY), **changes, "meta": {"version": 1, "generator": generator}}
    policy = parse_runtime_policy(json.dumps(said))
    assert policy.demands_ima
    assert not any("judges nothing" in warning for warning in policy.warnings)


@pytest.mark.parametrize("generator", [0, 1])
@pytest.mark.parametrize("changes", NO_RULES)
def test_l7_a_policy_without_rules_says_that_it_judges_nothing(
    changes: dict[str, Any], generator: int
) -> None:
    said = {**json.loads(EMPTY_POLICY), **changes, "meta": {"version": 1, "generator": generator}}
    policy = parse_runtime_policy(json.dumps(said))
    assert not policy.demands_ima
    assert [warning for warning in policy.warnings if "judges nothing" in warning]
    said["meta"]["generator"] = 2
    assert parse_runtime_policy(json.dumps(said)).demands_ima, (
        "one that was made to be a policy allows nothing"
    )


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in document().items() if name != key}


def with_meta(**changes: Any) -> dict[str, Any]:
    return document(meta={**document()["meta"], **changes})


def with_ima(**changes: Any) -> dict[str, Any]:
    return document(ima={**document()["ima"], **changes})


@pytest.mark.parametrize(
    ("broken", "place"),
    [
        *((without(key), f"{key} is missing") for key in json.loads(EMPTY_POLICY)),
        (document(meta={}), "meta.version is missing"),
        (with_meta(version=-1), "meta.version"),
        (with_meta(version=True), "meta.version"),
        (with_meta(version="1"), "meta.version"),
        (with_meta(generator=4), "meta.generator"),
        (with_meta(timestamp=1), "meta.timestamp"),
        (document(release=1.5), "release"),
        (document(digests=[]), "digests: expected an object"),
        (document(digests={"/a": []}), "digests['/a']"),
        (document(digests={"/a": A}), "digests['/a']: expected a list"),
        (
            document(digests={"/a": {A: 1}}),
            "digests['/a']: expected a list of at least one digest, got an object",
        ),
        (document(digests={"/a": None}), "digests['/a']: expected a list of at least one digest, got null"),
        (document(digests={"/a": [A, None]}), "digests['/a'][1]"),
        (document(digests={"/a": [A.upper()]}), "digests['/a'][0]"),
        (document(digests={"/a": ["ab" * 19]}), "digests['/a'][0]"),
        (document(digests={"/a": [A + "0"]}), "odd number"),
        (document(digests={"/a": ["sha1:" + A]}), "digests['/a'][0]"),
        (document(digests={"/a": ["md9:" + A]}), "digests['/a'][0]"),
        (document(digests={"/a": [A] * (MAX_DIGESTS_PER_NAME + 1)}), "digests['/a']"),
        (document(excludes="x"), "excludes: expected a list"),
        (document(excludes=[1]), "excludes[0]"),
        (document(excludes=["ok", "("]), "excludes[1]: '('"),
        (document(keyrings={".ima": ["x"]}), "keyrings['.ima'][0]"),
        (document(**{"ima-buf": {"x": [None]}}), "ima-buf['x'][0]"),
        (document(ima={}), "is missing"),
        (with_ima(log_hash_alg="md5"), "ima.log_hash_alg"),
        (with_ima(ignored_keyrings=[1]), "ima.ignored_keyrings[0]"),
        (with_ima(dm_policy=[]), "ima.dm_policy"),
        (document(**{"verification-keys": {}}), "verification-keys: expected a text"),
        (document(**{"verification-keys": "{"}), "verification-keys"),
        (document(hashes={"/a": [A]}), "'hashes' belongs to the old"),
        ([], "the runtime policy: expected an object"),
        (None, "the runtime policy: expected an object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_policy_is_refused_with_the_place(broken: object, place: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_runtime_policy(json.dumps(broken))
    assert place in str(caught.value)
    assert not str(caught.value).startswith(".")


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "{",
        text() + "x",
        text().replace('"release"', '"digests": {}, "release"'),
        text().replace("[]", "[NaN]"),
        text().replace("[]", "[" + "9" * 5000 + "]"),
        "[" * 100_000,
        '{"meta": "\\ud800"}',
        b"\xff",
    ],
    ids=range(9),
)
def test_texts_that_are_no_strict_json_are_refused(broken: str | bytes) -> None:
    with pytest.raises(PolicyError):
        parse_runtime_policy(broken)


def test_a_key_given_twice_is_named() -> None:
    with pytest.raises(PolicyError, match="'/a' is given twice"):
        parse_runtime_policy(text().replace('"/a":', f'"/a": ["{B}"], "/a":'))


def test_too_large_a_policy_is_refused_before_it_is_read() -> None:
    with pytest.raises(PolicyError, match="at most 100 "):
        parse_runtime_policy(b"[" * 101, max_bytes=100)
    size = len(EMPTY_POLICY)
    assert parse_runtime_policy(EMPTY_POLICY, max_bytes=size).to_json()
    for text in (
        EMPTY_POLICY,
        EMPTY_POLICY.encode(),
        EMPTY_POLICY.replace('"release"', '"\u00e9": 0, "release"'),
    ):
        size = len(text.encode()) if isinstance(text, str) else len(text)
        with pytest.raises(PolicyError, match=f"has {size} bytes: at most {size - 1} "):
            parse_runtime_policy(text, max_bytes=size - 1)


def test_digests_may_name_their_algorithm_and_are_stored_plain() -> None:
    policy = parse_runtime_policy(text(digests={"/a": [f"sha256:{A}"], "/b": [f"sha1:{C}"]}))
    assert json.loads(policy.to_json())["digests"] == {"/a": [A], "/b": [C]}


def test_as_many_digests_of_one_name_as_the_limit_says_are_accepted() -> None:
    digests = [f"{number:064x}" for number in range(MAX_DIGESTS_PER_NAME)]
    assert len(parse_runtime_policy(text(digests={"/a": digests})).digests["/a"]) == MAX_DIGESTS_PER_NAME


def test_many_digests_of_one_name_are_all_known() -> None:
    digests = [f"{number:064x}" for number in range(5000)]
    policy = parse_runtime_policy(text(digests={"/a": digests}))
    assert all(bytes.fromhex(digest) in policy.digests["/a"] for digest in digests)
    assert bytes.fromhex(A) not in policy.digests["/a"]


@pytest.mark.parametrize("old", ["exclude", "keyring", "verification_keys", "hashes", "allowlist"])
def test_l5_a_policy_with_members_of_two_formats_is_refused(old: str) -> None:
    with pytest.raises(PolicyError, match=f"'{old}'"):
        parse_runtime_policy(text(**{old: {}}))


@pytest.mark.parametrize("old", ["exclude", "keyring", "verification_keys"])
def test_a_policy_of_the_old_spelling_alone_lacks_the_new_one(old: str) -> None:
    new = {"exclude": "excludes", "keyring": "keyrings", "verification_keys": "verification-keys"}[old]
    with pytest.raises(PolicyError, match=f"^'{new}' is a required property: {new} is missing"):
        parse_runtime_policy(json.dumps({**without(new), old: {}}))


TWICE = [
    text().replace('"release": 0', '"release": 0, "release": 0'),
    text().replace('"/a":', '"/a": [], "/a":'),
    text().replace('"dm_policy": null', '"dm_policy": null, "dm_policy": null'),
    text(**{"verification-keys": '{"pubkeys": [], "pubkeys": [], "keyids": []}'}),
]


@pytest.mark.parametrize("policy", TWICE)
def test_l5_a_policy_with_a_key_twice_is_refused_and_the_key_named(policy: str) -> None:
    with pytest.raises(PolicyError, match=r"the key '[a-z_/]+' is given twice"):
        parse_runtime_policy(policy)


def test_unknown_keys_are_tolerated_and_likely_mistakes_are_pointed_out() -> None:
    policy = parse_runtime_policy(text(comment="x", exclude=["/y"]), is_stored=True)
    assert len(policy.warnings) == 1
    assert "'excludes'" in policy.warnings[0]
    assert not policy.is_excluded("/y")


def test_the_content_hash_is_of_the_content_not_of_its_spelling() -> None:
    plain = parse_runtime_policy(text(digests={"/a": [A, B], "/b": [C]}))
    again = json.dumps(document(digests={"/b": [f"sha1:{C}"], "/a": [B, A, A]}), indent=2)
    assert parse_runtime_policy(again).content_hash == plain.content_hash
    assert parse_runtime_policy(plain.to_json()).content_hash == plain.content_hash
    for changed in (
        document(digests={"/a": [A], "/b": [C]}),
        document(digests={"/a": [A, B], "/b": [C]}, excludes=[]),
        document(digests={"/a": [A, B], "/b": [C]}, keyrings={"k": [A]}),
    ):
        assert parse_runtime_policy(json.dumps(changed)).content_hash != plain.content_hash


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=3),
    )
)
def test_the_canonical_text_is_the_policy(digests: dict[str, list[str]]) -> None:
    policy = parse_runtime_policy(text(digests=digests))
    again = parse_runtime_policy(policy.to_json())
    assert again.to_json() == policy.to_json()
    assert again.digests == policy.digests


def test_policies_are_not_changed_by_what_is_made_of_them() -> None:
    first, second = parse_runtime_policy(text()), parse_runtime_policy(text(digests={"/a": [B]}))
    before = copy.deepcopy((dict(first.digests), dict(second.digests)))
    merge(first, second)
    diff(first, second)
    first.to_document()["digests"]["/a"].append("x")
    assert (dict(first.digests), dict(second.digests)) == before


def test_merging_takes_everything_that_either_has() -> None:
    keys = [keyring_of([(IMA_KEYS_DIRECTORY / f"ima-{kind}.pub.pem").read_bytes()]) for kind in ("ec", "rsa")]
    first = parse_runtime_policy(text(keyrings={"k": [A]}, **{"verification-keys": keys[0].to_json()}))
    second = parse_runtime_policy(
        text(
            digests={"/a": [B], "/b": [C]},
            excludes=["^/y/"],
            keyrings={"k": [B]},
            **{"verification-keys": keys[1].to_json()},
        )
    )
    merged = merge(first, second)
    assert merged.to_document()["digests"] == {"/a": [A, B], "/b": [C]}
    assert merged.to_document()["keyrings"] == {"k": [A, B]}
    assert merged.excludes.sources == ("^/x/", "^/y/")
    assert {key.key_id for key in merged.verification_keys.keys} == {0xB07CCEF7, 0xB6BA92E1}
    assert merge(first, first).content_hash == first.content_hash


def test_policies_for_different_lists_cannot_be_merged() -> None:
    with pytest.raises(PolicyError, match="log_hash_alg"):
        merge(parse_runtime_policy(text()), parse_runtime_policy(json.dumps(with_ima(log_hash_alg="sha256"))))


def dm_policy(match_on: str) -> dict[str, Any]:
    return with_ima(dm_policy={"version": 1, "match_on": match_on, "rules": {}})


def test_everything_that_a_policy_says_is_written_again() -> None:
    said = {
        **dm_policy("name"),
        "meta": {"version": 2, "generator": 3, "timestamp": "2025-01-01"},
        "release": 7,
        "keyrings": {".ima": [A]},
        "ima-buf": {"x": [B]},
    }
    said["ima"]["ignored_keyrings"] = [".evm", "*"]
    policy = parse_runtime_policy(json.dumps(said))
    assert json.loads(policy.to_json()) == said
    assert policy.ignores_keyring(".evm")
    assert policy.ignores_keyring("any other")


def test_only_the_named_keyrings_are_ignored() -> None:
    policy = parse_runtime_policy(json.dumps(with_ima(ignored_keyrings=[".evm"])))
    assert policy.ignores_keyring(".evm")
    assert not policy.ignores_keyring(".ima")


def test_one_device_mapper_policy_is_kept_and_two_different_ones_cannot_be_merged() -> None:
    plain = parse_runtime_policy(text())
    by_name, by_uuid = (parse_runtime_policy(json.dumps(dm_policy(key))) for key in ("name", "uuid"))
    for merged in (merge(plain, by_name), merge(by_name, plain), merge(by_name, by_name)):
        assert merged.to_document()["ima"] == by_name.to_document()["ima"]
    assert merge(plain, plain).dm_policy is None
    with pytest.raises(PolicyError, match="two different device-mapper policies"):
        merge(by_name, by_uuid)
    assert diff(plain, by_name).changed == diff(by_name, by_uuid).changed == ("ima.dm_policy",)


def test_merging_keeps_the_newer_account_of_where_a_policy_comes_from() -> None:
    none, old, new = (
        parse_runtime_policy(json.dumps(with_meta(**stamp)))
        for stamp in ({}, {"timestamp": "2024-01-01"}, {"timestamp": "2025-01-01"})
    )
    assert merge(old, new).meta == merge(new, none).meta == merge(none, new).meta == new.meta
    assert merge(none, none).meta == none.meta
    younger = parse_runtime_policy(json.dumps(with_meta(version=9)))
    assert merge(new, younger).meta == merge(younger, new).meta == younger.meta


@pytest.mark.parametrize(
    "changes",
    [
        {"digests": {"/a": [A], "/b": [A]}},
        {"digests": {}},
        {"excludes": []},
        {"excludes": ["^/x/", "^/y/"]},
        {"keyrings": {".ima": [A]}},
        {"ima-buf": {"x": [A]}},
        with_ima(ignored_keyrings=["*"]),
    ],
)
def test_any_other_rule_is_a_difference(changes: dict[str, Any]) -> None:
    assert not diff(parse_runtime_policy(text()), parse_runtime_policy(text(**changes))).is_empty


def test_a_difference_is_shown_rule_by_rule() -> None:
    old = parse_runtime_policy(text(digests={"/a": [A, B], "/b": [C]}))
    new = parse_runtime_policy(
        json.dumps({**with_ima(log_hash_alg="sha256"), "digests": {"/a": [A, C], "/c": [B]}, "excludes": []})
    )
    difference = diff(old, new)
    assert difference.added == {"digests": {"/a": (C,), "/c": (B,)}}
    assert difference.removed == {"digests": {"/a": (B,), "/b": (C,)}}
    assert (difference.excludes_added, difference.excludes_removed) == ((), ("^/x/",))
    assert difference.changed == ("ima.log_hash_alg",)
    assert not difference.is_empty
    assert diff(old, old).is_empty


@pytest.mark.parametrize("digits", [39, 40, 41, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("prefix", ["", "sha256:"])
def test_a_digest_alone_is_read_as_one_of_several_is(digits: int, prefix: str) -> None:
    digest, other = prefix + "a" * digits, "b" * 64
    document = json.loads(EMPTY_POLICY)

    def read(values: list[str]) -> set[bytes] | None:
        document["digests"] = {"/bin/true": values}
        try:
            return set(parse_runtime_policy(json.dumps(document)).digests["/bin/true"])
        except PolicyError:
            return None

    both, alone = read([digest, other]), read([digest])
    assert alone == (None if both is None else both - {bytes.fromhex(other)})
