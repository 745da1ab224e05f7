import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.measured_boot.os_records import judge_records
from keylime.measured_boot.user_space_log import (
    MAX_LOG_SIZE,
    MAX_RECORDS,
    UnreadableUserSpaceLog,
    UserSpaceLog,
    measured_word,
    parse_user_space_log,
    read_user_space_log,
    whole_records,
)
from tests.fuzz.cpu_time import within
from tests.os_logs import SHA1, SHA256, UNIFIED, os_log, os_record, put_together, take_apart

LOG = os_log("sdboot-uki") or b""
GOOD = os_record(11, "ready", "phase")


def refused(*records: object) -> str:
    """Why a log of these records, of any shape, is not read."""
    log = b"".join(b"\x1e" + json.dumps(record).encode() + b"\n" for record in records)
    found = read_user_space_log(log)
    assert isinstance(found, UnreadableUserSpaceLog), found
    return found.reason


@pytest.mark.parametrize("boot", UNIFIED)
def test_captured_logs_are_read_whole(boot: str) -> None:
    log = parse_user_space_log(os_log(boot) or b"")
    assert len(log.records) == 24
    assert not log.is_cut
    assert {record.pcr for record in log.records} == {None, *range(8), 9, *range(11, 16)}
    assert [record.text for record in log.of_pcr(11, SHA256)] == [
        "enter-initrd",
        "leave-initrd",
        "sysinit",
        "ready",
    ]
    assert all(
        bank.digest(record.word or b"") == digest
        for record in log.records
        for bank, digest in record.digests.items()
    )


def test_an_empty_log_has_no_records() -> None:
    assert parse_user_space_log(b"") == UserSpaceLog(())


@pytest.mark.parametrize("cut", [1, 2, 100, 300])
def test_a_record_that_is_being_written_is_left_out(cut: int) -> None:
    log = parse_user_space_log(LOG[:-cut])
    assert (len(log.records), log.is_cut) == (23, True)


def test_what_is_unknown_is_tolerated() -> None:
    record = {**GOOD, "recnum": 7, "more": [{}]}
    record["digests"] = [*GOOD["digests"], {"hashAlg": "sha3-256", "digest": "00" * 32}]
    record["content"] = {**GOOD["content"], "later": 1, "eventType": "none of ours"}
    other = {**GOOD, "content_type": "pcclient_std", "content": "whatever"}
    without = {"pcr": 3, "digests": GOOD["digests"], "content_type": "systemd"}
    first, second, third = parse_user_space_log(put_together([record, other, without])).records
    assert (first.text, first.event_type, set(first.digests)) == ("ready", "none of ours", {SHA1, SHA256})
    assert (second.text, second.event_type, second.pcr) == ("", "", 11)
    assert (third.text, third.pcr) == ("", 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pcr": 24}, "pcr is not a number from 0 to 23"),
        ({"pcr": -1}, "pcr is not"),
        ({"pcr": True}, "pcr is not"),
        ({"pcr": "11"}, "pcr is not"),
        ({"pcr": 1.0}, "pcr is not"),
        ({"nv_index": 1}, "either pcr or nv_index"),
        ({"digests": []}, "1 to 16 digests"),
        ({"digests": None}, "1 to 16 digests"),
        ({"digests": [1]}, "not a JSON object"),
        ({"digests": [{"hashAlg": "sha256", "digest": "00" * 20}]}, "sha256 digest of 20 bytes"),
        ({"digests": [{"hashAlg": "sha256", "digest": "AA" * 32}]}, "not lower-case hex"),
        ({"digests": [{"hashAlg": "other", "digest": "0"}]}, "not lower-case hex"),
        ({"digests": [{"digest": "00"}]}, "missing or repeated"),
        ({"digests": GOOD["digests"] * 2}, "missing or repeated"),
        ({"digests": [{"hashAlg": str(n), "digest": "00"} for n in range(17)]}, "1 to 16 digests"),
        ({"content_type": 1}, "content_type is not a text"),
        ({"content": []}, "content is not a JSON object"),
        ({"content": {"string": 1}}, "string is not a text"),
        ({"content": {"string": "x" * 4100}}, "string is not a text"),
        ({"content": {"string": "a\0b"}}, "string is not a text"),
        ({"content": {"bootId": "x"}}, "bootId is not 32 hex digits"),
        ({"content": {"eventType": {}}}, "eventType is not a text"),
    ],
)
def test_what_systemd_never_writes_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert reason in refused(GOOD, {**GOOD, **changes})
    assert refused(GOOD, {**GOOD, **changes}).startswith("record 1")


@pytest.mark.parametrize("record", [1, None, [], "text"])
def test_a_record_is_an_object(record: object) -> None:
    assert refused(record) == "record 0 is not a JSON object"


def test_a_record_names_a_pcr_or_an_nv_index() -> None:
    neither = {key: value for key, value in GOOD.items() if key != "pcr"}
    assert "either pcr or nv_index" in refused(neither)
    assert "nv_index is not a number" in refused({**neither, "nv_index": 1 << 32})
    (record,) = parse_user_space_log(put_together([{**neither, "nv_index": 30474752}])).records
    assert record.pcr is None


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (b"\n" + LOG, "does not begin with a record separator"),
        (LOG[1:], "does not begin with a record separator"),
        (LOG.replace(b"\n", b"", 1), "record 0 is not one line"),
        (LOG.replace(b",", b",\n", 1), "record 0 is not one line"),
        (LOG.replace(b"enter", b"en\0er", 1), "record 0 is not one line"),
        (LOG.replace(b'{"pcr":0', b'{"pcr":0,"pcr":0', 1), "the key 'pcr' is given twice"),
        (LOG.replace(b'"enter-initrd"', b'"\xff"', 1), "not UTF-8"),
        (b"\x1e" + b"[" * 100_000 + b"\n", "nested too deeply"),
        (b"\x1eNaN\n", "not valid JSON"),
        (b"\x1e" * 2, "record 0 is not one line"),
        (b"\x1e{}\n" * (MAX_RECORDS + 1), "more than 8192 records"),
        (LOG + b" " * MAX_LOG_SIZE, "at most 1048576 are read"),
    ],
)
def test_a_log_in_another_form_is_refused(log: bytes, reason: str) -> None:
    with pytest.raises(MalformedEvidence, match=reason):
        parse_user_space_log(log)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ready", b"ready"),
        ("", b""),
        (r"a\"b\\c\t\303\251\x7f\'", b"a\"b\\c\t\xc3\xa9\x7f'"),
        ("a..." * 255 + "...", ("a..." * 255 + "...").encode()),
        ("a" * 1024 + "...", None),
        (r"\303" * 1024 + "...", None),
        (r"\8", None),
        ("\\", None),
        (r"\x1", None),
        (r"\777", None),
    ],
)
def test_the_measured_word_is_the_text_without_escapes(text: str, word: bytes | None) -> None:
    assert measured_word(text) == word


def test_what_is_sent_ends_with_a_whole_record_within_the_limit() -> None:
    assert whole_records(LOG) == LOG
    assert whole_records(LOG[:-1]) == put_together(take_apart(LOG)[:-1])
    assert whole_records(LOG + b"\x1e") == LOG
    assert whole_records(b"") == b""
    assert whole_records(b"\x1e{") == b""
    assert whole_records(LOG, len(LOG)) == LOG
    assert whole_records(LOG, len(LOG) - 1) == put_together(take_apart(LOG)[:-1])
    assert whole_records(LOG, 10) == b""


@given(st.integers(0, len(LOG)), st.integers(0, len(LOG)))
@settings(max_examples=60)
def test_any_beginning_of_a_log_is_read(end: int, limit: int) -> None:
    log = parse_user_space_log(LOG[:end])
    whole = parse_user_space_log(LOG)
    assert log.records == whole.records[: len(log.records)]
    sent = whole_records(LOG[:end], limit)
    assert len(sent) <= limit
    assert LOG.startswith(sent)
    assert not parse_user_space_log(sent).is_cut


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([b"\x1e", b"\n", LOG[:340], b'{"pcr":1}', b'{"pcr":1,"digests":[{}]}']),
        ),
        max_size=12,
    )
)
@settings(max_examples=100)
def test_nothing_but_malformed_evidence_is_raised(pieces: list[bytes]) -> None:
    found = read_user_space_log(b"".join(pieces))
    if isinstance(found, UserSpaceLog):
        assert all(record.word is None or isinstance(record.word, bytes) for record in found.records)
    else:
        assert found.reason


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_every_word_survives_its_escaped_form(word: bytes) -> None:
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b"\\\"'" else f"\\{byte:03o}" for byte in word
    )
    assert measured_word(escaped) == word


@pytest.mark.parametrize("piece", ["a", "\\\\n"], ids=["plain", "escaped"])
def test_long_texts_are_read_once_and_in_bounds(piece: str) -> None:
    """Each agent may send such a log with each quote, and there is one verifier for all of them."""
    digests = '[{"hashAlg":"sha256","digest":"%s"}]' % ("0" * 64)
    text = piece * (4000 // len(piece))
    line = f'{{"pcr":15,"digests":{digests},"content_type":"systemd","content":{{"string":"{text}"}}}}'
    data = (b"\x1e" + line.encode() + b"\n") * 230

    def judge(data: bytes) -> None:
        log = parse_user_space_log(data)
        for _ in range(20):
            assert list(judge_records(15, log.records)) == []

    within(2, judge, data)
