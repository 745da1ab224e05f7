"""IMA lists from files: both forms, and what a policy can be made of."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import ConfigError, MalformedEvidence
from keylime_policy.measured import ascii_list, demand_entries, list_entries, measured_content
from tests.captures import Stage, capture, stages
from tests.ima_rounds import line_of


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_both_forms_are_the_same_list(stage: Stage) -> None:
    assert ascii_list(stage.binary_list) == ascii_list(stage.ascii_list) == stage.ascii_list
    assert list_entries(stage.binary_list) == list_entries(stage.ascii_list)


def test_violations_are_left_out_of_a_policy_and_said_so() -> None:
    stage = capture("direct-efistub").stage("s3-violations")
    measured = measured_content(list_entries(stage.ascii_list), frozenset())
    assert not any(set(digest) == {"0"} for digests in measured.digests.values() for digest in digests)
    assert any(text.startswith(f"{stage.violations} violations") for text in measured.left_out)


def test_digests_of_md5_are_left_out_of_a_policy_with_the_remedy() -> None:
    line = f"10 {'00' * 19}01 ima-ng md5:{'ab' * 16} /a\n10 {'00' * 19}01 ima-ng sha1:{'ab' * 20} /b\n"
    measured = measured_content(list_entries(line.encode()), frozenset())
    assert measured.digests == {"/b": {"ab" * 20}}
    assert [text for text in measured.left_out if "ima_hash=sha256" in text] == measured.left_out != []


def test_a_name_with_a_newline_is_one_entry() -> None:
    entry = line_of("ima-ng", f"sha1:{'ab' * 20} /a\nb")
    assert [entry.name for entry in list_entries(entry + b"\n" + entry)] == ["/a\nb", "/a\nb"]


def test_buffers_are_kept_apart_from_files() -> None:
    stage = capture("direct-critical-data-4banks").stage("s4-device-mapper")
    measured = measured_content(list_entries(stage.ascii_list), frozenset())
    assert "dm_table_load" in measured.buffers
    assert "kernel_version" in measured.buffers
    assert "dm_table_load" not in measured.digests
    assert not measured.keyrings


def test_a_line_that_is_no_entry_is_named_by_its_number() -> None:
    with pytest.raises(MalformedEvidence, match="line 2: "):
        list_entries(
            capture("direct-efistub").stage("s1-clean").ascii_list[:200].split(b"\n")[0] + b"\nx y\n"
        )


@pytest.mark.parametrize(
    "content", [b"eyJ4", b"\x1f\x8b\x08\0" * 9, b'"10 00 ima-ng x y"', b"10 00 sha1:00 /a"]
)
def test_what_is_no_list_of_a_kernel_is_refused_with_the_remedy(content: bytes) -> None:
    with pytest.raises(
        ConfigError, match=r"--x y: .*(as the kernel shows it|boot the machine with ima_template=)"
    ):
        demand_entries("--x", "y", content)


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf\r\n"])
@pytest.mark.parametrize("after", [b"", b"  \n", b"\r\n \t\r\n", b" "])
def test_what_an_editor_puts_around_a_list_is_no_part_of_it(before: bytes, after: bytes) -> None:
    text = capture("direct-efistub").stage("s1-clean").ascii_list
    assert text.endswith(b" \n")  # the empty last field of an entry
    assert ascii_list(before + text + after) == text
    assert list_entries(before + text + after) == list_entries(text)


@pytest.mark.parametrize("text", [b"", b"\n", b" ", b"\xef\xbb\xbf", b" \n\n "])
def test_blanks_alone_are_an_empty_list(text: bytes) -> None:
    assert (ascii_list(text).strip(), list_entries(text)) == (b"", [])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_a_declared_error(data: bytes) -> None:
    for content in (data, b"\x0a\0\0\0" + data):
        with contextlib.suppress(MalformedEvidence):
            ascii_list(content).decode()
            list_entries(content)
