import json
from collections.abc import Callable
from typing import TypeAlias

import pytest

from keylime.hashes import HashAlgorithm
from keylime.ima.keyrings import EMPTY_KEYRING
from keylime.ima.measurement_list import parse_line
from keylime.ima.memo import LINE_OVERHEAD, MAX_LINE_BYTES, EntryMemo, ViewKey
from keylime.ima.replay import ExtendMode
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy, parse_runtime_policy
from tests.evidence import policy_of
from tests.ima_rounds import Kernel, Verifier


def key(policy: str) -> ViewKey:
    return ViewKey(policy, b"", HashAlgorithm.SHA256, ExtendMode.NATIVE)


ROOM = LINE_OVERHEAD + MAX_LINE_BYTES  # is always kept free between appraisals


def test_a_full_memory_forgets_what_was_not_used_for_long() -> None:
    memo = EntryMemo(capacity=ROOM + 4 * (LINE_OVERHEAD + 1))
    for policy in ("old", "new"):
        view = memo.view(key(policy))
        for number in range(3):
            memo.remember(view, view.accepted, bytes([number]), b"")
    memo.view(key("old"))
    memo.trim()
    assert len(memo) == 3
    assert len(memo.view(key("old"))) == 3
    assert len(memo.view(key("new"))) == 0


def test_a_list_longer_than_the_memory_is_appraised_all_the_same() -> None:
    kernel = Kernel()
    for number in range(50):
        kernel.run(f"/file-{number}", "x")
    verifier = Verifier(policy_of([kernel.text()]), memo=EntryMemo(capacity=4000))
    for _ in range(3):
        assert verifier.appraise(kernel.text(), kernel.pcr).reached_end
        assert verifier.memo.size <= 4000


Rules: TypeAlias = Callable[[Kernel], RuntimePolicy]


def running(files: int) -> Kernel:
    kernel = Kernel()
    for number in range(files):
        kernel.run(f"/file-{number}", "x")
    return kernel


def listing(kernel: Kernel) -> RuntimePolicy:
    return policy_of([kernel.text()])


def excluding(kernel: Kernel) -> RuntimePolicy:
    return parse_runtime_policy(json.dumps({**json.loads(EMPTY_POLICY), "excludes": ["."]}))


@pytest.mark.parametrize("rules", [listing, excluding])
@pytest.mark.parametrize(("size", "remembered"), [(MAX_LINE_BYTES, 1), (MAX_LINE_BYTES + 1, 0), (6000, 0)])
def test_longer_lines_than_the_limit_are_not_remembered(rules: Rules, size: int, remembered: int) -> None:
    kernel = Kernel()
    kernel.run("/", "x")
    shortest = len(kernel.lines[0])
    kernel = Kernel()
    kernel.run("/" + "x" * (size - shortest), "x")
    assert len(kernel.lines[0]) == size
    verifier = Verifier(rules(kernel))
    assert verifier.appraise(kernel.text(), kernel.pcr).findings == ()
    assert len(verifier.memo) == remembered


@pytest.mark.parametrize("rules", [listing, excluding])
def test_not_even_for_a_moment_is_more_remembered_than_fits(rules: Rules) -> None:
    kernel = running(1100)
    cost = LINE_OVERHEAD + len(kernel.lines[-1])
    capacity = 50 * cost
    verifier = Verifier(rules(kernel), memo=EntryMemo(capacity))
    held = [verifier.memo.size for _ in verifier.steps(kernel.text(), kernel.pcr)]
    assert capacity - cost < max(held) <= capacity
    assert len(verifier.memo) == verifier.memo.size == 0, "a full memory starts anew"


def test_the_size_is_that_of_the_lines() -> None:
    kernel = running(30)
    for rules in (listing(kernel), excluding(kernel)):
        verifier = Verifier(rules)
        for _ in range(2):
            verifier.appraise(kernel.text(), kernel.pcr)
        assert verifier.memo.size == sum(len(line) + LINE_OVERHEAD for line in kernel.lines)


def test_many_policies_share_one_bound() -> None:
    kernel = running(3)
    cost = LINE_OVERHEAD + len(kernel.lines[0])
    memo = EntryMemo(capacity=ROOM + 10 * cost)
    for number in range(10):
        rules = policy_of([kernel.text()], excludes=[f"/{number}/"])
        assert Verifier(rules, memo=memo).appraise(kernel.text(), kernel.pcr).findings == ()
        assert len(memo) == min(3 * (number + 1), 9)


def test_policies_that_were_not_used_for_long_are_forgotten_however_few_lines_they_have() -> None:
    memo = EntryMemo()
    views = []
    for number in range(65):
        views.append(memo.view(key(str(number))))
        for lines in (views[-1].accepted, views[-1].excluded, views[-1].signed):
            lines[b"line"] = b""
        memo.trim()
    assert [len(view) for view in views] == [0] + 64 * [3]


def test_a_known_line_is_not_judged_again() -> None:
    kernel = running(2)
    rules = parse_runtime_policy(EMPTY_POLICY)
    verifier = Verifier(rules)
    assert len(verifier.appraise(kernel.text(), kernel.pcr).findings) == 2
    values = [kernel.bank.digest(parse_line(line).template_data) for line in kernel.lines]
    view = verifier.memo.view(
        ViewKey(rules.content_hash, EMPTY_KEYRING.fingerprint, kernel.bank, ExtendMode.NATIVE)
    )
    view.accepted[kernel.lines[0]] = values[0]
    view.excluded[kernel.lines[1]] = values[1]
    result = verifier.appraise(kernel.text(), kernel.pcr)
    assert (result.findings, result.excluded) == ((), 1)
