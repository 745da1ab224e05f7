from keylime.hashes import HashAlgorithm
from keylime.ima.memo import EntryMemo, ViewKey
from keylime.ima.replay import ExtendMode
from tests.evidence import policy_of
from tests.ima_rounds import Kernel, Verifier


def key(policy: str) -> ViewKey:
    return ViewKey(policy, b"", HashAlgorithm.SHA256, ExtendMode.NATIVE)


def test_a_full_memory_forgets_what_was_not_used_for_long() -> None:
    memo = EntryMemo(capacity=4)
    for policy in ("old", "new"):
        memo.view(key(policy)).accepted.update({bytes([number]): b"" for number in range(3)})
    memo.view(key("old"))
    memo.trim()
    assert len(memo) == 3
    assert len(memo.view(key("old"))) == 3
    assert len(memo.view(key("new"))) == 0


def test_a_list_longer_than_the_memory_is_appraised_all_the_same() -> None:
    kernel = Kernel()
    for number in range(50):
        kernel.run(f"/file-{number}", "x")
    verifier = Verifier(policy_of([kernel.text()]), memo=EntryMemo(capacity=10))
    for _ in range(3):
        assert verifier.appraise(kernel.text(), kernel.pcr).reached_end
        assert len(verifier.memo) <= 10


def test_very_long_lines_are_not_remembered() -> None:
    kernel = Kernel()
    kernel.run("/" + "x" * 5000, "x")
    verifier = Verifier(policy_of([kernel.text()]))
    assert verifier.appraise(kernel.text(), kernel.pcr).reached_end
    assert len(verifier.memo) == 0
