import struct
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import (
    Entry,
    common_fields,
    ima_ng_line,
    parse_binary_list,
    parse_line,
    parse_line_by_fields,
    split_lines,
    violation_line,
)
from keylime.ima.templates import FileDigest, pack_fields, template_named
from tests.captures import Stage, stages
from tests.ima_rounds import line_of

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_captured_lists_mean_the_same_in_both_forms(stage: Stage) -> None:
    lines = split_lines(stage.ascii_list)
    entries = [parse_line(line) for line in lines]
    assert len(entries) == stage.entries
    assert sum(entry.is_violation for entry in entries) == stage.violations
    assert parse_binary_list(stage.binary_list) == entries
    assert [entry.to_line() for entry in entries] == lines
    assert b"".join(entry.to_record() for entry in entries) == stage.binary_list


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_template_hashes_of_captured_entries_are_those_of_their_fields(stage: Stage) -> None:
    for entry in map(parse_line, split_lines(stage.ascii_list)):
        if not entry.is_violation:
            assert HashAlgorithm.SHA1.digest(entry.template_data) == entry.template_hash


@pytest.mark.parametrize("name", ["d-ng|n-ng", "d|n", "d|n-ng|sig", "d-ngv2|n-ng|sig|iuid"])
def test_a_list_in_a_format_of_ones_own_means_the_same_in_both_forms(name: str) -> None:
    digest = {"d": "", "d-ng": "sha1:", "d-ngv2": "ima:sha1:"}[name.split("|")[0]] + "ab" * 20
    rest = "".join({"sig": " 0302", "iuid": " 1000"}.get(part, "") for part in name.split("|"))
    fields = f"{digest} /a_b{rest}".encode()
    data = pack_fields(template_named(name), fields)
    line = b"10 %s %s %s" % (HashAlgorithm.SHA1.digest(data).hex().encode(), name.encode(), fields)
    entry = parse_line(line)
    assert (entry.name, entry.digest, entry.template_data) == ("/a_b", b"\xab" * 20, data)
    assert entry.signature == (b"\x03\x02" if "sig" in name else None)
    assert entry.mode == "ImaFormat"
    assert entry.to_line() == line
    assert parse_binary_list(entry.to_record()) == [entry]


def test_a_buffer_in_a_format_of_ones_own_is_that_of_an_entry_that_has_one() -> None:
    start = b"10 " + b"00" * 20 + b" d-ng|n-ng|buf " + DIGEST.encode() + b" kernel_version "
    assert parse_line(start + b"362e31").buffer == b"6.1"
    assert parse_line(start).buffer is None


@dataclass(frozen=True)
class Odd:
    line: bytes
    reason: str


@pytest.mark.parametrize(
    "odd",
    [
        Odd(b"", "four parts"),
        Odd(b"10 " + b"00" * 20 + b" ima-ng", "four parts"),
        Odd(b" 9 " + b"00" * 20 + b" ima-ng " + DIGEST.encode() + b" /x", "PCR"),
        Odd(b"9 " + b"00" * 20 + b" ima-ng " + DIGEST.encode() + b" /x", "PCR"),
        Odd(b"09 " + b"00" * 20 + b" ima-ng " + DIGEST.encode() + b" /x", "PCR"),
        Odd(b"24 " + b"00" * 20 + b" ima-ng " + DIGEST.encode() + b" /x", "PCR"),
        Odd(b"99 " + b"00" * 20 + b" ima-ng " + DIGEST.encode() + b" /x", "PCR"),
        Odd(b"+1 " + b"00" * 20 + b" ima-ng " + DIGEST.encode() + b" /x", "PCR"),
        Odd(b"10 " + b"0" * 39 + b" ima-ng " + DIGEST.encode() + b" /x", "hex"),
        Odd(b"10 " + b"AB" * 20 + b" ima-ng " + DIGEST.encode() + b" /x", "lower-case"),
        Odd(b"10 " + b"00" * 19 + b" ima-ng " + DIGEST.encode() + b" /x", "template hash of 19 bytes"),
        Odd(b"10  ima-ng " + DIGEST.encode() + b" /x y", "template hash of 0 bytes"),
        Odd(b"10 " + b"00" * 20 + b" ima-sig2 " + DIGEST.encode() + b" /x", "ima-sig2"),
        Odd(b"10 " + b"00" * 20 + b" sig|d-ng|n-ng  " + DIGEST.encode() + b" /x", "sig|d-ng|n-ng"),
        Odd(b"10 " + b"00" * 20 + b" d-ng|n-ng " + DIGEST.encode(), "2 fields, not 1"),
        Odd(b"10 " + b"00" * 20 + b" ima-ng " + DIGEST.encode() + b" /x\0y", "NUL"),
        Odd(b"10 " + b"00" * 20 + b" ima-sig " + DIGEST.encode() + b" /x 0302AB", "lower-case hex"),
    ],
    ids=lambda odd: odd.reason,
)
def test_lines_of_another_form_are_refused_by_name(odd: Odd) -> None:
    with pytest.raises(MalformedEvidence) as caught:
        parse_line(odd.line)
    assert odd.reason in str(caught.value)


@pytest.mark.parametrize(
    "name", ["/a b", "/a\tb", "/a\rb", "/trailing ", " /leading", "/Ä", "/" + "x" * 5000]
)
def test_names_are_taken_as_they_stand(name: str) -> None:
    line = line_of("ima-ng", f"{DIGEST} {name}")
    assert parse_line(line).name == name
    assert parse_line(line).to_line() == line


@pytest.mark.parametrize("column", [HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA512])
@pytest.mark.parametrize("template", ["ima-ng", "ima-sig"])
@pytest.mark.parametrize("name", ["/x", "/x\r"])
def test_a_carriage_return_belongs_to_the_name_only_where_the_template_hash_says_so(
    column: HashAlgorithm, template: str, name: str
) -> None:
    tail = " " if template == "ima-sig" else ""
    genuine = line_of(template, f"{DIGEST} {name}{tail}", column=column)
    assert parse_line(genuine).name == name
    from_elsewhere = parse_line(genuine + b"\r")
    assert from_elsewhere == parse_line(genuine)
    assert from_elsewhere.to_line() == genuine


def test_a_violation_from_another_system_keeps_its_name() -> None:
    assert parse_line(violation_line("/x") + b"\r") == parse_line(violation_line("/x"))


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("ima-sig", f"{DIGEST} /x "),
        ("ima-sigv2", f"ima:{DIGEST} /x "),
        ("ima-modsig", f"{DIGEST} /x   "),
        ("ima-modsig", f"{DIGEST} /x 0302  "),
        ("ima-buf", f"{DIGEST} /x "),
    ],
)
def test_optional_fields_that_an_editor_took_away_are_empty(template: str, fields: str) -> None:
    line = line_of(template, fields)
    assert parse_line(line.rstrip(b" ")) == parse_line(line)
    assert parse_line(line.rstrip(b" ") + b"\r") == parse_line(line)


def test_a_name_in_other_bytes_survives_both_forms() -> None:
    for template in ("ima", "ima-ng"):
        digest = SHA1_DIGEST if template == "ima" else DIGEST
        (entry,) = parse_binary_list(parse_line(line_of(template, f"{digest} /caf\udce9")).to_record())
        assert entry.name == r"/caf\351"
        assert entry.to_line().endswith(b"/caf\xe9")


def test_entries_of_other_pcrs_are_read() -> None:
    for pcr in (11, 23):
        line = line_of("ima-ng", f"{DIGEST} /x", pcr=pcr)
        assert parse_line(line).pcr == pcr
        assert parse_line(line).to_line() == line


def test_a_list_splits_at_newlines_only_and_keeps_the_blank_of_an_empty_field() -> None:
    assert split_lines(b"a\rb \n\nc \x85\x0b\n\n") == [b"a\rb ", b"", b"c \x85\x0b"]
    assert split_lines(b"") == []


def test_a_binary_list_must_end_with_a_whole_record() -> None:
    data = stages()[0].binary_list
    for cut in (1, 10, 40, len(data) - 1):
        with pytest.raises(MalformedEvidence):
            parse_binary_list(data[:cut])
    with pytest.raises(MalformedEvidence):
        parse_binary_list(data + b"\0")


def test_an_entry_in_a_binary_list_cannot_claim_more_bytes_than_there_are() -> None:
    record = (10).to_bytes(4, "little") + bytes(20) + b"\xff\xff\xff\xff"
    with pytest.raises(MalformedEvidence, match="4294967295 bytes expected"):
        parse_binary_list(record)


SHA1_DIGEST = "ab" * 20


def test_a_record_of_template_ima_is_read_and_written() -> None:
    line = line_of("ima", f"{SHA1_DIGEST} /usr/bin/x")
    entry = parse_line(line)
    record = entry.to_record()
    assert record == (
        struct.pack("<I", 10)
        + entry.template_hash
        + struct.pack("<I3s", 3, b"ima")
        + bytes.fromhex(SHA1_DIGEST)
        + struct.pack("<I10s", 10, b"/usr/bin/x")
    )
    assert parse_binary_list(record + record) == [entry, entry]


def binary_record(*, pcr: int = 10, template: bytes = b"ima", name: bytes = b"/x") -> bytes:
    """A record whose fields are those of template ima."""
    head = struct.pack("<I20sI", pcr, b"h" * 20, len(template)) + template
    return head + bytes.fromhex(SHA1_DIGEST) + struct.pack("<I", len(name)) + name


def test_records_may_name_any_pcr_that_there_is() -> None:
    assert [parse_binary_list(binary_record(pcr=pcr))[0].pcr for pcr in (0, 23)] == [0, 23]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (binary_record(pcr=24), "PCR 24"),
        (binary_record(template=b"imb"), "template 'imb'"),
        (binary_record(name=b"/x\0"), "NUL"),
        (binary_record(name=b"/x\0y"), "NUL"),
        (binary_record(name=b"/" * 256), "at most 255"),
        (binary_record(name=b"/" * 257), "digest of 21 bytes"),
    ],
)
def test_records_of_another_form_are_refused_by_name(record: bytes, reason: str) -> None:
    assert len(parse_binary_list(binary_record(name=b"/" * 255))) == 1
    with pytest.raises(MalformedEvidence, match=reason):
        parse_binary_list(record)


def test_a_line_made_for_a_file_is_the_kernels() -> None:
    digest = FileDigest(
        "sha256", bytes.fromhex("96d7fae8adb7286a419a88f78c13d35fb782d63df654b7db56f154765698b754")
    )
    assert ima_ng_line(digest, "/data").startswith(
        b"10 80255d9c7dad91ef5f21b18560a47642d6f4d653 ima-ng sha256:"
    )
    assert ima_ng_line(digest, "/two words").endswith(b" /two_words")
    assert parse_line(violation_line("/data")).is_violation


@given(st.binary(max_size=300))
@example(b"10 " + b"00" * 20 + b" ima-sig " + DIGEST.encode() + b" /x ")
def test_any_bytes_are_one_entry_exactly_or_refused(line: bytes) -> None:
    try:
        entry = parse_line(line)
    except MalformedEvidence:
        return
    assert entry.to_line() == line


CAPTURED = [line for stage in stages() for line in split_lines(stage.ascii_list)]


@given(st.sampled_from(CAPTURED), st.data())
def test_the_short_way_through_the_parser_is_the_long_way(line: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(line) - 1))
    changed = line[:position] + bytes([data.draw(st.integers(0, 255))]) + line[position + 1 :]
    for candidate in (line, changed):
        fields = common_fields(candidate)
        if fields is not None:
            assert Entry(10, *fields) == parse_line_by_fields(candidate)


@pytest.mark.parametrize("column", [HashAlgorithm.SHA1, HashAlgorithm.SHA256])
@pytest.mark.parametrize(
    ("template", "rest"),
    [("ima-ng", "/x"), ("ima-ng", "/x y"), ("ima-sig", "/x "), ("ima-sig", "/x 0302")],
)
def test_the_commonest_entries_take_the_short_way(column: HashAlgorithm, template: str, rest: str) -> None:
    line = line_of(template, f"{DIGEST} {rest}", column=column)
    fields = common_fields(line)
    assert fields is not None
    assert Entry(10, *fields) == parse_line_by_fields(line)


COMMON = line_of("ima-sig", f"{DIGEST} /x 0302")


@pytest.mark.parametrize(
    "line",
    [
        line_of("ima-ng", f"{DIGEST} /x", pcr=11),
        line_of("ima", f"{SHA1_DIGEST} /x"),
        line_of("ima-ng", f"{DIGEST} /x", column=HashAlgorithm.SHA384),
        COMMON.replace(b" /x", b"-/x"),
        COMMON.replace(b" 0302", b""),
        COMMON.replace(b"0302", b"AB"),
        COMMON.replace(b"ab", b"aB"),
        COMMON.replace(b"/x", b"/x\0"),
    ],
)
def test_any_other_line_does_not_take_the_short_way(line: bytes) -> None:
    assert common_fields(COMMON) is not None
    assert common_fields(line) is None


@given(st.binary(max_size=300))
def test_any_binary_list_is_understood_exactly_or_refused(data: bytes) -> None:
    try:
        entries = parse_binary_list(data)
    except MalformedEvidence:
        return
    assert b"".join(entry.to_record() for entry in entries) == data
