"""Names with newlines, which kernels print as they are: one entry on several lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.ima.measurement_list import BOOT_AGGREGATE, parse_line
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy, parse_runtime_policy
from keylime.ima.whole_entries import whole_entries, with_whole_entries
from tests.ima_rounds import BOOT_DIGEST, Kernel, Verifier, file_digest, line_of

DIGEST = "sha256:" + "ab" * 32


def policy(digests: dict[str, list[str]]) -> RuntimePolicy:
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    document["digests"] = {BOOT_AGGREGATE: [BOOT_DIGEST], **digests}
    return parse_runtime_policy(json.dumps(document))


def passes(verifier: Verifier, kernel: Kernel) -> bool:
    result = verifier.appraise(kernel.text(), kernel.pcr)
    return result.pcr_matched and not result.findings


def printed(template: str, name: str, rest: str = "") -> bytes:
    """The line or lines that a kernel prints for a file."""
    return line_of(template, f"{DIGEST} {name}{rest}")


NAMES = ["/a\nb", "/a\n\nb", "/a\n", "\n", "/a\n10_x", "/a\n10", "/\n" + "\n" * 40, "/a\r\nb"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("template", "rest"), [("ima-ng", ""), ("ima-sig", " "), ("ima-sig", " 030204"), ("ima-buf", " 00")]
)
def test_an_entry_on_several_lines_is_read_as_the_one_that_it_is(name: str, template: str, rest: str) -> None:
    entry = printed(template, name, rest)
    around = [printed("ima-ng", "/before"), printed("ima-sig", "/after", " ")]
    lines = b"\n".join([around[0], entry, around[1]]).split(b"\n")
    whole = with_whole_entries(lines)
    assert len(whole) == len(lines)
    assert [line for line in whole if line] == [around[0], entry, around[1]]
    assert whole[-2] == entry  # at its last line
    assert parse_line(entry).name == name


@given(
    st.lists(st.sampled_from(["/x", *NAMES]), max_size=8),
    st.lists(st.integers(1, 4), min_size=40, max_size=40),
)
def test_wherever_a_list_is_cut_its_entries_are_whole(names: list[str], sizes: list[int]) -> None:
    entries = [printed("ima-ng", name) for name in [*names, "/last"]]
    lines = b"\n".join(entries).split(b"\n")
    slices, at = [], 0
    for size in [*sizes, len(lines)]:
        slices.append(lines[at : at + size])
        at += size
    whole = [line for some in whole_entries(iter(slices)) for line in some]
    assert len(whole) == len(lines)
    assert [line for line in whole if line] == entries


def test_the_last_name_of_a_list_may_end_with_a_newline() -> None:
    entry = printed("ima-ng", "/a\n")
    assert list(whole_entries([[printed("ima-ng", "/b"), entry.rstrip(b"\n")]]))[-1] == [entry]


def test_a_violation_keeps_its_whole_name() -> None:
    line = b"10 %s ima-ng sha256:%s /var/log/a\nb" % (b"00" * 20, b"00" * 32)
    after = printed("ima-ng", "/after")
    assert with_whole_entries([*line.split(b"\n"), after]) == [b"", line, after]
    assert with_whole_entries([*line.split(b"\n"), b"", after]) == [b"", line, b"", after]


@pytest.mark.parametrize(
    "lines",
    [
        [printed("ima-ng", "/a"), b"what is this"],
        [printed("ima-ng", "/a").replace(b"/a", b"/b"), b"what is this", printed("ima-ng", "/c")],
        [b"what is this", printed("ima-ng", "/c")],
        [b"", b"", printed("ima-ng", "/c"), b""],
        [printed("ima-ng", "/a\n" + "x" * (17 << 10)).split(b"\n")[0], b"x" * (17 << 10)],
        printed("ima-ng", "/" + "\n" * 65).split(b"\n"),
        [],
    ],
)
def test_lines_that_no_template_hash_holds_together_stay_what_they_are(lines: list[bytes]) -> None:
    assert with_whole_entries(lines) == lines
    assert [line for some in whole_entries(iter([lines])) for line in some] == lines


@given(st.lists(st.one_of(st.binary(max_size=20), st.just(printed("ima-ng", "/a"))), max_size=90))
def test_no_line_is_lost_or_made_up(lines: list[bytes]) -> None:
    whole = [line for some in whole_entries(iter([lines[:7], lines[7:]])) for line in some]
    assert len(whole) == len(lines)


def test_a_machine_with_such_a_file_is_judged_by_its_policy() -> None:
    kernel = Kernel.booted()
    kernel.run("/opt/a\nb", "good")
    kernel.run("/opt/c", "good")
    digest = file_digest("good").split(":")[1]
    known = {"/opt/c": [digest]}
    listed = Verifier(policy({**known, "/opt/a\nb": [digest]})).at_first_contact()
    assert passes(listed, kernel)
    result = Verifier(policy(known)).at_first_contact().appraise(kernel.text(), kernel.pcr)
    assert [(finding.path, finding.event_id) for finding in result.findings] == [
        ("/opt/a\nb", "ima.validation.ima-ng.not_in_allowlist")
    ]


def test_a_name_that_imitates_an_entry_proves_nothing() -> None:
    imitated = printed("ima-ng", "/good").decode()
    kernel = Kernel.booted()
    kernel.run(f"/x\n{imitated.replace(' ', '_')}\n{imitated}", "evil")
    digests = {"/good": ["ab" * 32], "/x": ["ab" * 32]}
    assert not passes(Verifier(policy(digests)).at_first_contact(), kernel)


def test_rounds_go_on_behind_such_an_entry() -> None:
    kernel = Kernel.booted()
    kernel.run("/opt/a\nb", "good")
    digest = file_digest("good").split(":")[1]
    names = {"/opt/a\nb": [digest], "/opt/c": [digest]}
    verifier = Verifier(policy(names)).at_first_contact()
    first = verifier.appraise(kernel.text(), kernel.pcr)
    assert first.checkpoint.next_entry == kernel.text().count(b"\n") == 3
    kernel.run("/opt/c", "good")
    rest = b"".join(kernel.text().splitlines(keepends=True)[3:])
    second = verifier.after(first).appraise(rest, kernel.pcr)
    assert second.pcr_matched
    assert not second.findings
