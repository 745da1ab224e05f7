"""Several runtime policies together: what is accepted, whose word counts, what is judged again."""

import hashlib
import json

import pytest

from keylime.appraisal.checkpoint import Checkpoint
from keylime.errors import PolicyError
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.policy_union import MAX_PARTS, covers, keeps_learned, overlaps, unite
from keylime.ima.runtime_policy import EMPTY_POLICY, PolicyHash, RuntimePolicy, parse_runtime_policy
from tests.appraisal_rounds import NOT_LISTED, WRONG_DIGEST
from tests.ima_rounds import Verifier, file_digest, line_of
from tests.unit.ima.test_rules import after, buffer_line, public_key

OLD, NEW = file_digest("old"), file_digest("new")


def rules(digests: dict[str, list[str]] | None = None, **changes: object) -> RuntimePolicy:
    document = json.loads(EMPTY_POLICY)
    return parse_runtime_policy(
        json.dumps({**document, "digests": {"/own": [OLD]} if digests is None else digests, **changes})
    )


def line(digest: str, path: str) -> bytes:
    return line_of("ima-ng", f"{digest} {path}")


def events(parts: list[RuntimePolicy], *lines: bytes) -> list[str]:
    return [finding.event_id for finding in after(list(lines), Verifier(unite(parts))).findings]


def test_l10_what_one_part_lists_is_accepted_and_nothing_else() -> None:
    parts = [rules({"/usr/bin/tool": [OLD]}), rules({"/usr/bin/tool": [NEW], "/usr/bin/more": [NEW]})]
    lines = line(OLD, "/usr/bin/tool"), line(NEW, "/usr/bin/tool"), line(NEW, "/usr/bin/more")
    for order in (parts, parts[::-1]):
        assert events(order, *lines) == []
        assert events(order, line(OLD, "/usr/bin/more"), line(OLD, "/x")) == [WRONG_DIGEST, NOT_LISTED]
    (finding,) = after([line(OLD, "/x")], Verifier(unite(parts))).findings
    assert [one.content_hash in str(finding.policy) for one in parts] == [True, True]


def test_l11_an_exclude_of_one_part_excuses_what_no_other_part_judges() -> None:
    everything_else = rules({"/opt/app": [NEW]}, excludes=["/(?!opt/).*"])
    base = rules({"/usr/bin/tool": [OLD], "/var/cache": [OLD]}, excludes=["/var/.*", "/run/.*"])
    both = [everything_else, base]
    assert events(both, line(NEW, "/usr/bin/tool")) == [WRONG_DIGEST], "the base lists it, and judges it"
    assert events(both, line(OLD, "/usr/bin/tool"), line(NEW, "/run/x")) == []
    assert events(both, line(NEW, "/var/cache")) == [], "the base itself excludes what it lists"
    assert events(both, line(NEW, "/usr/bin/other")) == [], "nobody lists it"
    assert events(both, line(OLD, "/opt/app")) == [WRONG_DIGEST]
    (remark,) = overlaps([("app", everything_else), ("base", base)])
    assert "'app' match 1 of 2 names that 'base' lists" in remark


def test_l11_a_keyring_that_one_part_ignores_and_another_judges_is_judged() -> None:
    ours, theirs = public_key(11), public_key(12)
    judging = rules(keyrings={".ima": [hashlib.sha256(ours).hexdigest()]})
    for names in ([".ima"], ["*"]):
        ima = {**json.loads(EMPTY_POLICY)["ima"], "ignored_keyrings": names}
        ignoring = rules({"/x": [OLD]}, ima=ima, keyrings={".ima": [file_digest("never used")]})
        both = [ignoring, judging]
        result = after([buffer_line(".ima", ours)], Verifier(unite(both)))
        assert result.findings == ()
        assert sum(len(one.keys) for one in result.checkpoint.keyrings) == 1, "it vouches for files"
        assert len(events(both, buffer_line(".ima", theirs))) == 1
        assert len(events(both, buffer_line(".other", theirs))) == (0 if "*" in names else 1)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([rules(), parse_runtime_policy(EMPTY_POLICY)], "2 of 2 judges nothing"),
        ([rules()] * (MAX_PARTS + 1), "cannot hold together"),
        ([], "cannot hold together"),
        (
            [rules(), rules(ima={**json.loads(EMPTY_POLICY)["ima"], "log_hash_alg": "sha256"})],
            "ima.log_hash_alg: sha1 and sha256",
        ),
    ],
)
def test_l14_what_cannot_hold_together_is_refused(parts: list[RuntimePolicy], reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        unite(parts)


def test_one_part_stays_itself() -> None:
    part = rules()
    assert unite([part]) is part


@pytest.mark.parametrize(
    ("change", "is_covered"),
    [
        ({}, True),
        ({"digests": {"/own": [OLD, NEW], "/more": [NEW]}}, True),
        ({"digests": {"/own": [NEW]}}, False),
        ({"digests": {"/own": [OLD], "boot_aggregate": [NEW]}}, False),
        ({"excludes": ["/run/.*", "/var/.*"]}, True),
        ({"excludes": []}, False),
        ({"keyrings": {}}, False),
        ({"keyrings": {".ima": [OLD, NEW]}}, True),
        ({"ima": {"ignored_keyrings": ["*"], "log_hash_alg": "sha1", "dm_policy": None}}, False),
        ({"ima": {"ignored_keyrings": [], "log_hash_alg": "sha256", "dm_policy": None}}, False),
        ({"ima-buf": {}}, False),
    ],
)
def test_nothing_is_judged_again_where_everything_is_still_accepted(
    change: dict[str, object], is_covered: bool
) -> None:
    before: dict[str, object] = {
        "digests": {"/own": [OLD]},
        "excludes": ["/run/.*"],
        "keyrings": {".ima": [OLD]},
        "ima-buf": {"x": [OLD]},
    }
    old, new = (
        parse_runtime_policy(json.dumps(json.loads(EMPTY_POLICY) | part))
        for part in (before, before | change)
    )
    assert covers(new, old) is is_covered


def test_l13_keys_that_a_part_has_vouched_for_end_with_it() -> None:
    teaching, other = rules(keyrings={".ima": [OLD]}), rules({"/x": [NEW]})
    assert not keeps_learned(other, teaching)
    assert keeps_learned(unite([other, teaching]), teaching)


def test_l13_a_list_is_gone_on_with_where_all_that_judged_it_is_accounted_for() -> None:
    a, b, both, other = (PolicyHash(one) for one in ("a", "b", "a+b", "x"))
    known = Checkpoint(ima=ImaCheckpoint(next_entry=7, anchored=True), ima_policy=both)
    assert known.under_policy(both) is known
    assert known.under_policy(b, {a, b, other}) is known
    for succeeded in ([], [b], [a], [both]):
        assert known.under_policy(b, succeeded).ima == ImaCheckpoint.fresh()
    assert Checkpoint().under_policy(b, {b}).ima == ImaCheckpoint.fresh()
