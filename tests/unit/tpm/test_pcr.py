import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.tpm.pcr import (
    DATA_PCR,
    IMA_PCR,
    MEASURED_BOOT_PCRS,
    PcrSelection,
    PcrValues,
    data_pcr_value,
    encode_pcr_blob,
    extend,
    parse_pcr_blob,
    start_value,
)
from tests.captures import CapturedQuote, Stage, captured_quotes, stages

BANKS = st.sampled_from([one for one in HashAlgorithm if one is not HashAlgorithm.SM3_256])


@st.composite
def pcr_values(draw: st.DrawFn) -> PcrValues:
    bank = draw(BANKS)
    indices = draw(st.sets(st.integers(0, 23), min_size=1))
    digest = st.binary(min_size=bank.size, max_size=bank.size)
    return PcrValues(bank, {index: draw(digest) for index in indices})


@pytest.mark.parametrize("quote", captured_quotes(), ids=lambda quote: quote.id)
def test_captured_blobs_hold_the_values_that_the_guest_read(quote: CapturedQuote) -> None:
    stage = next(one for one in stages() if (one.capture, one.name) == (quote.capture, quote.stage))
    pcrs = parse_pcr_blob(quote.pcr_blob)
    assert pcrs.bank.label == quote.bank
    assert pcrs.values == {index: stage.pcrs(quote.bank)[index] for index in range(16)}
    assert encode_pcr_blob(pcrs) == quote.pcr_blob


@given(pcr_values())
def test_encoding_and_parsing_are_inverse(pcrs: PcrValues) -> None:
    blob = encode_pcr_blob(pcrs)
    assert len(blob) == 136 + 532 * -(-len(pcrs.values) // 8)
    assert parse_pcr_blob(blob) == pcrs


@given(st.binary(max_size=2000))
def test_any_bytes_parse_canonically_or_are_malformed(data: bytes) -> None:
    try:
        pcrs = parse_pcr_blob(data)
    except MalformedEvidence:
        return
    assert encode_pcr_blob(pcrs) == data


@given(pcr_values(), st.data())
def test_an_altered_blob_still_parses_canonically_or_is_malformed(
    pcrs: PcrValues, data: st.DataObject
) -> None:
    blob = bytearray(encode_pcr_blob(pcrs))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = parse_pcr_blob(bytes(blob))
    except MalformedEvidence:
        return
    assert encode_pcr_blob(parsed) == blob


@given(pcr_values(), st.data())
def test_every_truncation_and_extension_is_malformed(pcrs: PcrValues, data: st.DataObject) -> None:
    blob = encode_pcr_blob(pcrs)
    with pytest.raises(MalformedEvidence):
        parse_pcr_blob(blob[: data.draw(st.integers(0, len(blob) - 1))])
    with pytest.raises(MalformedEvidence):
        parse_pcr_blob(blob + data.draw(st.binary(min_size=1, max_size=600)))


def test_the_documented_example_has_these_bytes() -> None:
    values = {16: bytes(range(32)), 23: bytes(range(32, 64))}
    blob = encode_pcr_blob(PcrValues(HashAlgorithm.SHA256, values))
    assert len(blob) == 668
    assert blob[:12] == bytes.fromhex("01000000 0b00 03 000081 0000")
    assert blob[132:136] == bytes.fromhex("01000000")
    assert blob[136:174] == bytes.fromhex("02000000 2000") + bytes(range(32))


SELECTED = PcrValues(HashAlgorithm.SHA256, {index: bytes([index]) * 32 for index in range(10)})


def altered(offset: int, replacement: bytes) -> bytes:
    blob = encode_pcr_blob(SELECTED)
    return blob[:offset] + replacement + blob[offset + len(replacement) :]


@pytest.mark.parametrize(
    ("blob", "complaint"),
    [
        (b"", "has 0 bytes"),
        (altered(0, b"\x00"), "0 banks"),
        (altered(0, b"\x02"), "2 banks"),
        (altered(0, b"\xff\xff\xff\xff"), "4294967295 banks"),
        (altered(4, b"\x99"), "not a known hash"),
        (altered(4, b"\x04"), "canonical"),  # labelled sha1, digests of 32 bytes
        (altered(6, b"\x00"), "bitmap"),
        (altered(6, b"\x04"), "bitmap"),
        (altered(7, b"\x00\x00\x00"), "no PCR"),
        (altered(7, b"\xff\x01"), "canonical"),  # one PCR fewer, as many lists
        (altered(7, b"\x01\x00"), "1 PCRs has 1200 bytes"),
        (altered(10, b"\x01"), "canonical"),  # fourth byte of the bitmap
        (altered(11, b"\x01"), "canonical"),  # filler
        (altered(12, b"\x0b\x00\x03\x01"), "canonical"),  # a second bank in an uncounted slot
        (altered(132, b"\x01"), "canonical"),  # lists
        (altered(136, b"\x07"), "canonical"),  # digests in the first list
        (altered(140, b"\x14"), "canonical"),  # size of a digest
        (altered(174, b"\x01"), "canonical"),  # behind a digest
        (altered(1199, b"\x01"), "canonical"),  # in an unused slot
        (encode_pcr_blob(SELECTED) + bytes(532), "1732 bytes"),
    ],
)
def test_a_blob_that_is_not_canonical_is_refused_with_its_reason(blob: bytes, complaint: str) -> None:
    with pytest.raises(MalformedEvidence, match=complaint):
        parse_pcr_blob(blob)


@given(st.integers(0, 0xFFFFFF))
def test_masks_and_selections_are_the_same_thing(mask: int) -> None:
    selection = PcrSelection.from_mask(HashAlgorithm.SHA256, mask)
    assert selection.mask == mask
    assert selection.indices == {index for index in range(24) if mask & 1 << index}
    assert int.from_bytes(selection.bitmap, "little") == mask


@pytest.mark.parametrize("mask", [-1, 0x1000000])
def test_a_mask_beyond_the_registers_is_refused(mask: int) -> None:
    with pytest.raises(ValueError, match="24 bits"):
        PcrSelection.from_mask(HashAlgorithm.SHA256, mask)


def test_values_and_selections_refuse_what_no_tpm_has() -> None:
    with pytest.raises(ValueError, match="0 to 23"):
        PcrSelection(HashAlgorithm.SHA256, frozenset({24}))
    with pytest.raises(ValueError, match="0 to 23"):
        PcrValues(HashAlgorithm.SHA256, {-1: bytes(32)})
    with pytest.raises(ValueError, match="32 bytes"):
        PcrValues(HashAlgorithm.SHA256, {0: bytes(20)})


def test_a_selection_reads_like_tpm2_tools_write_it() -> None:
    assert str(PcrSelection.from_mask(HashAlgorithm.SHA1, 0x10401)) == "sha1:0,10,16"
    assert str(PcrSelection.from_mask(HashAlgorithm.SHA1, 0)) == "sha1:none"


def test_the_roles_of_the_registers_do_not_overlap() -> None:
    assert MEASURED_BOOT_PCRS | {IMA_PCR} == set(range(16))
    assert IMA_PCR not in MEASURED_BOOT_PCRS
    assert DATA_PCR == 16


@pytest.mark.parametrize("stage", [stages()[0], stages()[-1]], ids=lambda stage: stage.capture)
def test_registers_that_nobody_used_hold_their_start_values(stage: Stage) -> None:
    for bank in stage.banks:
        pcrs = stage.pcrs(bank)
        for index in (*range(11, 14), *range(15, 24)):
            assert start_value(HashAlgorithm.from_label(bank), index) == pcrs[index], (bank, index)


def test_digests_are_over_the_values_in_ascending_order() -> None:
    values = PcrValues(HashAlgorithm.SHA1, {2: b"b" * 20, 10: b"c" * 20, 1: b"a" * 20})
    expected = hashlib.sha256(b"a" * 20 + b"b" * 20 + b"c" * 20).digest()
    assert values.digest(HashAlgorithm.SHA256) == expected


def test_the_data_pcr_is_extended_once_by_the_hash_of_the_key_text() -> None:
    pem = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    expected = hashlib.sha384(bytes(48) + hashlib.sha384(pem.encode()).digest()).digest()
    assert data_pcr_value(HashAlgorithm.SHA384, pem) == expected
    assert data_pcr_value(HashAlgorithm.SHA384, pem.rstrip()) != expected


def test_extension_hashes_the_old_value_before_the_new() -> None:
    assert (
        extend(HashAlgorithm.SHA256, b"\x01" * 32, b"\x02" * 32)
        == hashlib.sha256(b"\x01" * 32 + b"\x02" * 32).digest()
    )


def test_no_claimed_length_costs_memory() -> None:
    huge = struct.pack("<I", 1) + struct.pack("<HB3s2x", 0x000B, 3, b"\xff\xff\xff")
    with pytest.raises(MalformedEvidence):
        parse_pcr_blob(huge.ljust(132, b"\x00") + b"\xff\xff\xff\xff")
