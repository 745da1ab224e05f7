import struct
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_log import MAX_EVENTS, MAX_LOG_SIZE, parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import Opaque, Separator
from tests.captures import Capture, capture, captures
from tests.fakes.event_logs import SPEC_ID, build_log, header, record, spans, take_apart

SEPARATOR = record(0, EventType.SEPARATOR, bytes(4))
LOCALITY = b"StartupLocality\0"


@pytest.mark.parametrize("captured", captures(), ids=lambda captured: captured.name)
def test_every_captured_log_has_the_events_that_the_tools_count(captured: Capture) -> None:
    log = parse_event_log(captured.boot_log)
    expected = captured.boot_log_expected
    events = log.events[1:]
    assert log.spec_id is not None
    assert len(events) == expected["events_after_header"]
    assert Counter(event.type_name for event in events) == expected["events_per_type"]
    assert Counter(str(event.pcr) for event in events) == expected["events_per_pcr"]


@pytest.mark.parametrize("captured", captures(), ids=lambda captured: captured.name)
def test_digests_and_data_are_those_of_the_records(captured: Capture) -> None:
    log = parse_event_log(captured.boot_log)
    assert [
        (event.pcr, event.type_code, tuple(event.digests.items()), event.data) for event in log.events[1:]
    ] == [(item.pcr, item.type_code, item.digests, item.data) for item in take_apart(captured.boot_log)]
    assert [event.number for event in log.events] == list(range(len(log.events)))


def test_a_sha1_only_log_is_read_from_its_first_record() -> None:
    action = record(5, EventType.EFI_ACTION, b"Exit Boot Services Invocation")
    log = parse_event_log(SEPARATOR.encode_sha1() + action.encode_sha1())
    assert log.spec_id is None
    assert log.algorithms == (HashAlgorithm.SHA1,)
    assert [event.pcr for event in log.events] == [0, 5]
    assert log.events[0].decoded == Separator(0)


def test_the_header_of_a_tpm_1_2_log_is_an_ordinary_record() -> None:
    log = parse_event_log(header(data=b"Spec ID Event00\0" + bytes(16)) + SEPARATOR.encode_sha1())
    assert log.spec_id is None
    assert isinstance(log.events[0].decoded, Opaque)


def test_only_a_record_without_action_can_be_the_header_of_a_crypto_agile_log() -> None:
    measured = record(0, EventType.EFI_ACTION, SPEC_ID + bytes(13))
    log = parse_event_log(measured.encode_sha1() + SEPARATOR.encode_sha1())
    assert log.spec_id is None
    assert len(log.events) == 2


def test_a_log_may_have_sixteen_banks_and_not_more() -> None:
    log = parse_event_log(header([(number, 1) for number in range(0x100, 0x110)]))
    assert log.spec_id is not None
    assert len(log.spec_id.digest_sizes) == 16


def test_a_log_may_be_as_long_as_the_limit() -> None:
    head = len(record(5, EventType.EFI_ACTION, b"").encode_sha1())
    log = record(5, EventType.EFI_ACTION, bytes(MAX_LOG_SIZE - head)).encode_sha1()
    assert len(log) == MAX_LOG_SIZE
    assert len(parse_event_log(log).events) == 1


def test_a_bank_without_a_name_of_ours_is_read_and_left_out() -> None:
    sizes = [(HashAlgorithm.SHA256, 32), (0x0027, 32)]
    digests = struct.pack("<H", 0x0027) + b"3" * 32 + struct.pack("<H", 0x000B) + b"2" * 32
    log = parse_event_log(
        header(sizes) + struct.pack("<III", 4, 4, 2) + digests + struct.pack("<I", 4) + bytes(4)
    )
    assert log.algorithms == (HashAlgorithm.SHA256,)
    assert log.events[1].digests == {HashAlgorithm.SHA256: b"2" * 32}


def test_a_record_that_is_never_extended_may_name_no_pcr() -> None:
    log = parse_event_log(build_log([record(0xFFFFFFFF, EventType.NO_ACTION, b"SP800-155 Event3")]))
    assert log.events[1].pcr == 0xFFFFFFFF


def raw(count: int, digests: bytes, size: int, data: bytes) -> bytes:
    return header() + struct.pack("<III", 0, 4, count) + digests + struct.pack("<I", size) + data


SHA1 = struct.pack("<H", 4) + bytes(20)
SHA256 = struct.pack("<H", 11) + bytes(32)
BOTH = SHA1 + SHA256


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (b"", "empty"),
        (bytes(10), "announced"),
        (bytes(MAX_LOG_SIZE + 1), "at most"),
        (header() + bytes(3), "event 1"),
        (raw(3, BOTH + SHA1, 0, b""), "3 digests"),
        (raw(0xFFFFFFFF, BOTH, 0, b""), "4294967295 digests"),
        (raw(2, SHA1 + SHA1 + bytes(12), 0, b""), "repeated"),
        (raw(2, SHA1 + struct.pack("<H", 12) + bytes(48), 0, b""), "unknown or repeated"),
        (raw(2, BOTH, 5, bytes(4)), "event 1: data: 5 bytes announced, 4 left"),
        (raw(2, BOTH, 0xFFFFFFFF, bytes(4)), "4294967295 bytes announced"),
        (raw(2, BOTH, 4, bytes(5)), "event 2"),
        (build_log([record(24, EventType.SEPARATOR, bytes(4))]), "no PCR 24"),
        (header([(4, 20), (4, 20)]), "named twice"),
        (header([(4, 32)]), "sha1 digests of 32 bytes"),
        (header([(11, 20)]), "sha256 digests of 20 bytes"),
        (header([(0x27, 0)]), "are empty"),
        (header([]), "0 digest algorithms"),
        (header([(number, 1) for number in range(0x100, 0x111)]), "17 digest algorithms"),
        (header(data=SPEC_ID + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 0xFFFFFFFF)), "digest algorithms"),
        (header(data=SPEC_ID + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 3, 1, 4, 20, 0)), "UINTN"),
        (header(data=SPEC_ID + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, 4, 20, 1)), "vendor info"),
        (
            header(data=SPEC_ID + struct.pack("<IBBBBIHHBB", 0, 0, 2, 0, 2, 1, 4, 20, 0, 0)),
            "after the log header",
        ),
        (header(data=SPEC_ID), "platform class"),
        (b"\1" + header()[1:], "PCR 0"),
        (header()[:8] + b"\1" + header()[9:], "digest of zeros"),
        (build_log([record(0, EventType.NO_ACTION, LOCALITY + b"\3")] * 2), "second startup locality"),
        (build_log([record(1, EventType.NO_ACTION, LOCALITY + b"\3")]), "locality in PCR 1"),
        (build_log([record(0, EventType.NO_ACTION, LOCALITY + b"\2")]), "locality 2"),
    ],
)
def test_a_malformed_log_is_refused_with_its_reason(log: bytes, reason: str) -> None:
    with pytest.raises(MalformedEvidence, match=reason):
        parse_event_log(log)


@pytest.mark.parametrize(
    "text", [b"AAAAAAMAAAAAAAAAAAAA" * 9, b"---\nversion: 1\nevents:\n" * 9, b"\x1f\x8b\x08\0" * 20]
)
def test_what_a_tool_made_of_a_log_is_refused_with_the_remedy(text: bytes) -> None:
    with pytest.raises(MalformedEvidence, match="binary_bios_measurements as the kernel shows it"):
        parse_event_log(text)


@pytest.mark.parametrize("padding", [bytes(12), bytes(456), b"\xff" * 12, b"\xff" * 511, bytes(65_536)])
def test_what_fills_up_the_log_area_behind_the_last_event_is_passed_over(padding: bytes) -> None:
    log = capture("direct-efistub").boot_log
    assert parse_event_log(log + padding) == parse_event_log(log)
    old = b"".join(item.encode_sha1() for item in take_apart(log))
    assert parse_event_log(old + padding) == parse_event_log(old)


@pytest.mark.parametrize(
    "rest",
    [bytes(11), b"\xff" * 11, bytes(456) + b"\1", b"\xff" * 99 + b"\0", bytes(20) + b"\xff" * 20],
)
def test_what_is_not_filled_up_alike_is_refused(rest: bytes) -> None:
    with pytest.raises(MalformedEvidence, match=r"announced|digests, the header|no PCR"):
        parse_event_log(capture("direct-efistub").boot_log + rest)


def test_a_log_with_too_many_events_is_refused() -> None:
    tiny = record(0, EventType.SEPARATOR, b"", banks=[HashAlgorithm.SHA1])
    with pytest.raises(MalformedEvidence, match=f"more than {MAX_EVENTS} events"):
        parse_event_log(tiny.encode_sha1() * (MAX_EVENTS + 1))


def test_a_log_cut_anywhere_but_between_records_is_refused() -> None:
    log = capture("direct-efistub").boot_log
    ends = {spans(log)[0].start, *(span.end for span in spans(log))}
    for size in range(len(log)):
        if size in ends:
            parse_event_log(log[:size])
        else:
            with pytest.raises(MalformedEvidence):
                parse_event_log(log[:size])


@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda rest: header() + rest))
def test_any_bytes_are_a_log_or_refused(data: bytes) -> None:
    try:
        parse_event_log(data)
    except MalformedEvidence as error:
        assert str(error)  # noqa: PT017  both outcomes are right, and neither may be an empty text


@given(
    data=st.data(),
    types=st.lists(st.sampled_from([*EventType, 0x14, 0xFFFFFFFF]), max_size=5),
)
def test_any_event_data_are_decoded_or_kept_opaque(data: st.DataObject, types: list[int]) -> None:
    contents = [data.draw(st.binary(max_size=300)) for _ in types]
    # A startup locality is refused in the wrong place; it has tests of its own.
    records = [
        record(0, kind, content)
        for kind, content in zip(types, contents, strict=True)
        if not content.startswith(LOCALITY)
    ]
    log = parse_event_log(build_log(records))
    assert [event.data for event in log.events[1:]] == [item.data for item in records]


@given(
    st.integers(min_value=0, max_value=16592), st.binary(max_size=8), st.integers(min_value=0, max_value=8)
)
def test_a_damaged_capture_is_a_log_or_refused(offset: int, insertion: bytes, removed: int) -> None:
    log = capture("grub-secureboot").boot_log
    try:
        parse_event_log(log[:offset] + insertion + log[offset + removed :])
    except MalformedEvidence as error:
        assert str(error)  # noqa: PT017  both outcomes are right, and neither may be an empty text


def test_the_time_to_read_a_log_grows_with_its_size_only() -> None:
    def seconds(count: int) -> float:
        log = build_log([SEPARATOR] * count)
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            parse_event_log(log)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(8_000) < 8 * seconds(2_000)


def cc_log(register: int) -> bytes:
    """The log of a TDX guest: SHA-384 alone, and RTMRs (1 to 4) in the place of PCRs."""
    bank = HashAlgorithm.SHA384
    records = [
        record(register, EventType.EFI_VARIABLE_DRIVER_CONFIG, b"SecureBoot", banks=[bank]),
        record(2, EventType.EFI_BOOT_SERVICES_APPLICATION, b"shim", banks=[bank]),
        record(3, EventType.IPL, b"kernel_cmdline: quiet\0", banks=[bank]),
    ]
    return build_log(records, [bank])


def test_the_log_of_a_tdx_guest_is_named_as_what_it_is() -> None:
    with pytest.raises(MalformedEvidence, match=r"CC event log \(CCEL\) of a confidential guest"):
        parse_event_log(cc_log(1))
    with pytest.raises(MalformedEvidence, match="binary_bios_measurements"):
        parse_event_log(b"CCEL" + bytes(52))
    with pytest.raises(MalformedEvidence, match="CC event log"):
        parse_event_log(b"\1" + cc_log(1)[1:])
    assert parse_event_log(cc_log(7)).algorithms == (HashAlgorithm.SHA384,)  # of a TPM with that bank alone
