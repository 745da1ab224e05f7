import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.tpm.pcr import PcrSelection
from keylime.tpm.structures import (
    Attest,
    AttestationType,
    CertifyInfo,
    ClockInfo,
    QuoteInfo,
    StructureReader,
    parse_attest,
)
from tests.captures import CapturedQuote, captured_quotes, captures
from tests.fakes.software_ak import pcr_selection, quote_attest, tpm2b

ECDSA_QUOTE = captures()[0].stages[0].quote("ecdsa", "sha256")


def encode(attest: Attest) -> bytes:
    """TPMS_ATTEST again, by the tests' own builder."""
    assert isinstance(attest.attested, QuoteInfo)
    return quote_attest(
        nonce=attest.extra_data,
        selections=[pcr_selection(one.bank, one.indices) for one in attest.attested.selections],
        digest=attest.attested.pcr_digest,
        signer=attest.qualified_signer,
        clock=attest.clock.clock,
        reset_count=attest.clock.reset_count,
        restart_count=attest.clock.restart_count,
        safe=int(attest.clock.safe),
        firmware_version=attest.firmware_version,
    )


@pytest.mark.parametrize("quote", captured_quotes(), ids=lambda quote: quote.id)
def test_captured_attestations_are_read_in_full(quote: CapturedQuote) -> None:
    attest = parse_attest(quote.attest)
    capture = next(one for one in captures() if one.name == quote.capture)
    assert attest.type is AttestationType.QUOTE
    assert attest.extra_data == quote.nonce.encode()
    assert attest.qualified_signer == capture.read(f"ak_{quote.ak}.qualified_name")
    assert attest.firmware_version == 0x2019102300163636
    assert attest.clock.reset_count > 0
    assert isinstance(attest.attested, QuoteInfo)
    bank = HashAlgorithm.from_label(quote.bank)
    assert attest.attested.selections == (PcrSelection.from_mask(bank, 0xFFFF),)
    assert encode(attest) == quote.attest


def test_the_clock_of_one_capture_is_this() -> None:
    stage = next(one for one in captures() if one.name == "grub-secureboot").stage("s1-clean")
    clock = parse_attest(stage.quote("ecdsa", "sha256").attest).clock
    assert clock == ClockInfo(clock=0x14E57, reset_count=2, restart_count=0, safe=True)


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_malformed(data: bytes) -> None:
    for candidate in (data, b"\xff\x54\x43\x47\x80\x18" + data):
        try:
            attest = parse_attest(candidate)
        except MalformedEvidence:
            continue
        assert encode(attest) == candidate


@given(st.lists(st.tuples(st.integers(0, len(ECDSA_QUOTE.attest) - 1), st.integers(0, 255)), max_size=4))
def test_an_altered_attestation_parses_canonically_or_is_malformed(changes: list[tuple[int, int]]) -> None:
    data = bytearray(ECDSA_QUOTE.attest)
    for offset, value in changes:
        data[offset] = value
    try:
        attest = parse_attest(bytes(data))
    except MalformedEvidence:
        return
    if attest.type is AttestationType.QUOTE:
        assert encode(attest) == data


def test_every_truncation_is_malformed() -> None:
    for length in range(len(ECDSA_QUOTE.attest)):
        with pytest.raises(MalformedEvidence):
            parse_attest(ECDSA_QUOTE.attest[:length])


SELECTION = pcr_selection(HashAlgorithm.SHA256, [10])


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (quote_attest(nonce=b"n", selections=[SELECTION], digest=bytes(32)) + b"\x00", "1 unexpected bytes"),
        (quote_attest(nonce=b"n", selections=[SELECTION], digest=bytes(32), magic=0), "magic 0x00000000"),
        (quote_attest(nonce=b"n", selections=[SELECTION], digest=bytes(32), kind=0x8019), "type 0x8019"),
        (quote_attest(nonce=b"n", selections=[SELECTION], digest=bytes(32), safe=2), "yes"),
        (quote_attest(nonce=b"n" * 67, selections=[SELECTION], digest=bytes(32)), "67 bytes"),
        (quote_attest(nonce=b"n", selections=[SELECTION] * 17, digest=bytes(32)), "17 banks"),
        (quote_attest(nonce=b"n", selections=[SELECTION], digest=bytes(65)), "65 bytes"),
        (quote_attest(nonce=b"n", selections=[pcr_selection(0x99, [])], digest=b""), "0x0099"),
        (quote_attest(nonce=b"n", selections=[b"\x00\x0b\x02\x00\x00\x00"], digest=b""), "bitmap"),
    ],
)
def test_each_deviation_is_refused_with_its_reason(data: bytes, complaint: str) -> None:
    with pytest.raises(MalformedEvidence, match=complaint):
        parse_attest(data)


def test_a_count_of_four_billion_selections_is_refused_at_once() -> None:
    prefix = quote_attest(nonce=b"", selections=[], digest=b"")[:-6]
    with pytest.raises(MalformedEvidence, match="4294967295 banks"):
        parse_attest(prefix + b"\xff\xff\xff\xff")


def test_a_certification_is_read_as_one() -> None:
    quote = quote_attest(nonce=b"nonce", selections=[], digest=b"", kind=0x8017)[:-6]
    attest = parse_attest(quote + tpm2b(b"\x00\x0bname") + tpm2b(b"\x00\x0bqualified"))
    assert attest.type is AttestationType.CERTIFY
    assert attest.attested == CertifyInfo(b"\x00\x0bname", b"\x00\x0bqualified")
    with pytest.raises(MalformedEvidence):
        parse_attest(quote + tpm2b(b"\x00\x0bname"))


def test_a_reader_says_where_the_bytes_ended() -> None:
    reader = StructureReader(b"\x00\x05abc", "thing")
    with pytest.raises(MalformedEvidence, match="thing is cut short: 5 bytes expected at offset 2, 3 left"):
        reader.sized(10)


def test_a_tpm_has_at_most_sixteen_banks() -> None:
    one = pcr_selection(HashAlgorithm.SHA256, [0])
    attested = parse_attest(quote_attest(nonce=b"", selections=[one] * 16, digest=b"")).attested
    assert isinstance(attested, QuoteInfo)
    assert len(attested.selections) == 16
    with pytest.raises(MalformedEvidence, match="17 banks"):
        parse_attest(quote_attest(nonce=b"", selections=[one] * 17, digest=b""))
