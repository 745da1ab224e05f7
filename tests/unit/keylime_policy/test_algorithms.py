"""Which algorithm a policy's digests have when several sources speak."""

import hashlib

import msgspec
import pytest

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import parse_line, split_lines, violation_line
from keylime_policy.algorithms import (
    AlgorithmClaim,
    choose_algorithm,
    claim_of_digests,
    claim_of_list,
    claim_of_option,
    template_hash_of_list,
)
from tests.captures import Stage, stages

SHA1, SHA256, SHA512 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA512


def of_length(digits: int) -> AlgorithmClaim:
    claim = claim_of_digests("list", {"/a": ["0" * digits]})
    assert claim is not None
    return claim


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([], SHA256),
        ([of_length(40)], SHA1),
        ([of_length(64)], SHA256),  # or SM3: nothing else speaks
        ([of_length(64), claim_of_option("sm3_256")], HashAlgorithm.SM3_256),
        ([claim_of_option("sha512"), of_length(128)], SHA512),
    ],
)
def test_all_sources_are_heard(claims: list[AlgorithmClaim], expected: HashAlgorithm) -> None:
    assert choose_algorithm(claims) is expected


def test_sources_that_disagree_are_named() -> None:
    with pytest.raises(ConfigError, match=r"list has sha1 digests, but --algo has sha256"):
        choose_algorithm([claim_of_option("sha256"), of_length(40)])


def test_digests_of_no_known_length_are_refused() -> None:
    with pytest.raises(ConfigError, match="44 hex digits"):
        of_length(44)
    assert claim_of_digests("list", {}) is None
    assert claim_of_digests("list", {"/a": ["sha256:" + "0" * 64]}) == of_length(64)


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_an_ima_list_speaks_by_its_boot_aggregate(stage: Stage) -> None:
    entries = [parse_line(line) for line in split_lines(stage.ascii_list)]
    claim = claim_of_list("list", entries)
    assert claim is not None
    assert {a.label for a in claim.candidates} == {stage.expected["boot_aggregate"]["algorithm"]}
    assert claim_of_list("list", entries[1:]) is None
    assert claim_of_list("list", []) is None


@pytest.mark.parametrize(("algorithm", "size"), [("sha1", 48), ("sha1", 64), ("sha1", 32), ("sm3", 32)])
def test_template_hashes_that_no_policy_can_name_are_refused_with_the_remedy(
    algorithm: str, size: int
) -> None:
    first = parse_line(b"10 " + b"0" * 40 + b" ima-ng sha256:" + b"ab" * 32 + b" boot_aggregate")
    hashed = hashlib.new(algorithm, first.template_data).digest().ljust(size, b"\0")
    violation = parse_line(violation_line("/a", hash_size=size))
    entry = msgspec.structs.replace(first, template_hash=hashed)
    for entries in ([entry], [violation, entry]):
        with pytest.raises(ConfigError, match=r"^list: .*; give ascii_runtime_measurements"):
            template_hash_of_list("list", entries)


def test_a_list_of_two_kinds_of_template_hash_is_refused() -> None:
    entries = [parse_line(violation_line("/a", hash_size=size)) for size in (20, 32)]
    assert template_hash_of_list("list", entries[1:]) is HashAlgorithm.SHA256
    with pytest.raises(ConfigError, match="list: its entries have template hashes of different algorithms"):
        template_hash_of_list("list", entries)
