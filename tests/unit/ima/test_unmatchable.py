"""What a policy lists in vain is named, and nothing else is."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keylime.ima.unmatchable import name_warnings
from tests.captures import Stage, stages
from tests.evidence import policy_of


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("*/usr/bin/tool", "absolute"),
        ("usr/bin/tool", "absolute"),
        ("./usr/bin/tool", "absolute"),
        ("", "absolute"),
        ("/opt/two words", "blanks"),
        ("/usr//bin/tool", "kernel writes"),
        ("/usr/./bin/tool", "kernel writes"),
        ("/usr/bin/..", "kernel writes"),
        ("/usr/bin/", "kernel writes"),
    ],
)
def test_a_name_that_no_kernel_measures_is_named_with_the_reason(name: str, reason: str) -> None:
    (warning,) = name_warnings(["/usr/bin/a", name], "digests")
    assert repr(name) in warning
    assert reason in warning


def test_of_many_names_the_first_ones_are_shown() -> None:
    (warning,) = name_warnings([f"bin/{number}" for number in range(100)], "digests")
    assert "'bin/0', 'bin/1', 'bin/2' and 97 more" in warning


MEMFD = "memfd:runc_cloned:/proc/self/exe"  # containers are started so, and kexec calls a kernel memfd:kernel
NAMES = st.text(st.sampled_from([*"/. a\n\r\0é", "\ud800"]), max_size=6)


@given(st.lists(NAMES.map(lambda name: f"/{name}") | NAMES, max_size=6))
@example([MEMFD, "a", MEMFD + " x", "memfd"])
@example(["/a", ""])
@example(["", "/a"])
@example(["/a", "boot_aggregate"])
@example(["/a", "boot_aggregate/"])
@example(["/a\n/b", "/c d"])
@example([f"bin/{number}" for number in range(1001)])
def test_all_at_once_are_doubted_as_one_by_one(names: list[str]) -> None:
    has_all_looked_at = "/a\nb"  # and gives no doubt itself
    assert list(name_warnings(names, "x")) == list(name_warnings([*names, has_all_looked_at], "x"))


@pytest.mark.parametrize(
    "name", ["boot_aggregate", "/.hidden", "/a/...", "/a/.b", "/a/b.", "/memfd:x", MEMFD]
)
def test_names_of_kernels_are_left_alone(name: str) -> None:
    assert list(name_warnings([name], "digests")) == []


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_policies_of_genuine_lists_give_no_warning(stage: Stage) -> None:
    assert policy_of([stage.ascii_list]).warnings == ()
