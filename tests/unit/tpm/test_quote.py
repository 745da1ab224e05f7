import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import AttestationKey, SignatureScheme, parse_attestation_key
from keylime.tpm.pcr import PcrSelection, PcrValues, encode_pcr_blob
from keylime.tpm.quote import QuoteRejected, encode_quote, parse_quote, verify_quote
from keylime.tpm.structures import ClockInfo
from tests.captures import AK_LABELS, CapturedQuote, captured_quotes, captures
from tests.effort import tried
from tests.fakes.software_ak import SoftwareAk

STAGE = captures()[0].stages[0]


def asked(quote: CapturedQuote) -> tuple[AttestationKey, bytes, PcrSelection]:
    bank = HashAlgorithm.from_label(quote.bank)
    return parse_attestation_key(quote.ak_public), quote.nonce.encode(), PcrSelection.from_mask(bank, 0xFFFF)


def is_accepted(text: str, key: AttestationKey, nonce: bytes, selection: PcrSelection) -> bool:
    try:
        verify_quote(parse_quote(text), key, nonce, selection)
    except (MalformedEvidence, QuoteRejected):
        return False
    return True


@pytest.mark.parametrize("quote", captured_quotes(), ids=lambda quote: quote.id)
def test_every_captured_quote_is_verified(quote: CapturedQuote) -> None:
    verified = verify_quote(parse_quote(quote.text), *asked(quote))
    assert verified.signature_hash is HashAlgorithm.SHA256
    assert verified.clock.safe
    assert verified.pcrs.bank.label == quote.bank
    assert encode_pcr_blob(verified.pcrs) == quote.pcr_blob
    assert encode_quote(quote.attest, quote.signature, quote.pcr_blob) == quote.text


def test_what_the_tpm_vouched_for_is_handed_on() -> None:
    ak = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
    pcrs = PcrValues(HashAlgorithm.SHA1, {10: b"\x0a" * 20, 16: b"\x10" * 20})
    text = ak.quote(b"n", pcrs, clock=7, reset_count=8, restart_count=9, safe=0, firmware_version=10)
    verified = verify_quote(parse_quote(text), parse_attestation_key(ak.tpm2b_public), b"n", pcrs.selection)
    assert verified.pcrs == pcrs
    assert verified.clock == ClockInfo(clock=7, reset_count=8, restart_count=9, safe=False)
    assert verified.firmware_version == 10
    assert verified.signature_hash is HashAlgorithm.SHA256


@pytest.mark.parametrize("label", AK_LABELS)
def test_no_flipped_bit_of_any_part_is_accepted(label: str) -> None:
    quote = STAGE.quote(label, "sha256")
    question = asked(quote)
    parts = (quote.attest, quote.signature, quote.pcr_blob)
    assert is_accepted(encode_quote(*parts), *question)
    for position, part in enumerate(parts):
        for bit in tried(range(len(part) * 8)):
            flipped = bytearray(part)
            flipped[bit // 8] ^= 1 << bit % 8
            changed = [*parts]
            changed[position] = bytes(flipped)
            assert not is_accepted(encode_quote(*changed), *question), (position, bit)


@pytest.mark.parametrize("quote", captured_quotes(), ids=lambda quote: quote.id)
def test_no_flipped_bit_of_any_capture_is_accepted(quote: CapturedQuote) -> None:
    data = quote.attest + quote.signature + quote.pcr_blob
    first, second = len(quote.attest), len(quote.attest) + len(quote.signature)
    question = asked(quote)
    for bit in range(0, len(data) * 8, 499):  # a prime, so that all positions within a byte have their turn
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        changed = encode_quote(bytes(flipped[:first]), bytes(flipped[first:second]), bytes(flipped[second:]))
        assert not is_accepted(changed, *question), bit


def test_no_flipped_bit_of_the_text_is_accepted() -> None:
    quote = STAGE.quote("ecdsa", "sha1")
    question = asked(quote)
    characters = quote.text.encode()
    for bit in tried(range(len(characters) * 8)):
        flipped = bytearray(characters)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not is_accepted(flipped.decode("latin-1"), *question), bit


@given(st.text(max_size=300))
def test_any_text_is_a_quote_or_malformed(text: str) -> None:
    for candidate in (text, "r" + text, "r" + base64.b64encode(text.encode()).decode() + ":AAAA:AAAA"):
        with pytest.raises(MalformedEvidence):
            parse_quote(candidate)


@given(st.binary(max_size=300), st.integers(0, 2))
def test_any_bytes_in_one_part_are_a_quote_or_malformed(data: bytes, position: int) -> None:
    quote = STAGE.quote("ecdsa", "sha256")
    parts = [quote.attest, quote.signature, quote.pcr_blob]
    parts[position] = data
    assert not is_accepted(encode_quote(*parts), *asked(quote))


def test_a_quote_of_absurd_length_is_refused_unread() -> None:
    with pytest.raises(MalformedEvidence, match="at most 8192"):
        parse_quote("r" + "A" * 1_000_000)


def test_the_largest_genuine_quote_is_within_the_limit() -> None:
    pcrs = PcrValues(HashAlgorithm.SHA512, {index: bytes(64) for index in range(24)})
    text = encode_quote(bytes(4 + 2 + 68 + 68 + 25 + 4 + 16 * 6 + 66), bytes(6 + 512), encode_pcr_blob(pcrs))
    assert len(text) < 8192


@pytest.mark.parametrize(("size", "reason"), [(8192, "parts"), (8193, "8193 characters, at most 8192")])
def test_a_text_is_read_up_to_its_largest_size_and_not_beyond(size: int, reason: str) -> None:
    with pytest.raises(MalformedEvidence, match=reason):
        parse_quote("r" + "A" * (size - 1))
