"""Attacks on quotes that are decided by parsing or verifying a quote, by their ids in the attack catalogue.

Forgeries are made with a key in software, which signs what no TPM would; relayed and replayed quotes are
genuine.
"""

import base64
import dataclasses
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from keylime.errors import KeylimeError, MalformedEvidence, UnsuitableKey
from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import AttestationKey, SignatureScheme, group_order, parse_attestation_key
from keylime.tpm.pcr import PcrSelection, PcrValues, encode_pcr_blob
from keylime.tpm.quote import QuoteRejected, encode_quote, parse_quote, verify_quote
from tests.captures import AK_LABELS, captures
from tests.fakes.software_ak import SoftwareAk, ecc_public, pcr_selection, quote_attest, rsa_public, tpm2b

SHA1, SHA256, SHA512 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA512
NONCE = b"0YkqCoOGTUKHwBO8oeBa"
PCRS = PcrValues(SHA256, {0: b"\x00" * 32, 10: b"\x0a" * 32, 16: b"\x10" * 32})
ASKED = PCRS.selection
SELECTION = pcr_selection(SHA256, ASKED.indices)

ECDSA = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
RSASSA = SoftwareAk.generate("rsa2048", SignatureScheme.RSASSA)
CAPTURE = captures()[0]
CLEAN = CAPTURE.stage("s1-clean")


def key_of(ak: SoftwareAk) -> AttestationKey:
    return parse_attestation_key(ak.tpm2b_public)


def verify(text: str, ak: SoftwareAk = ECDSA, nonce: bytes = NONCE, selection: PcrSelection = ASKED) -> None:
    verify_quote(parse_quote(text), key_of(ak), nonce, selection)


def forged(attest: bytes, *, ak: SoftwareAk = ECDSA, pcrs: PcrValues = PCRS) -> str:
    """A quote whose signature is right, whatever `attest` says."""
    return encode_quote(attest, ak.sign(attest), encode_pcr_blob(pcrs))


def attest_of(pcrs: PcrValues = PCRS, *, nonce: bytes = NONCE, **fields: int) -> bytes:
    selection = pcr_selection(pcrs.bank, pcrs.selection.indices)
    return quote_attest(
        nonce=nonce,
        selections=[selection],
        digest=pcrs.digest(SHA256),
        **fields,  # type: ignore[arg-type]  # all keywords left over are numbers
    )


@pytest.mark.parametrize("ak", [ECDSA, RSASSA], ids=["ecdsa", "rsassa"])
def test_the_forger_can_make_a_quote_that_passes(ak: SoftwareAk) -> None:
    """Without this, the refusals below would prove nothing."""
    verify(forged(attest_of(), ak=ak), ak)


@pytest.mark.parametrize("content", [b"\x00", b"\x5a", b"\xff"])
@pytest.mark.parametrize("ak", [ECDSA, RSASSA], ids=["ecdsa", "rsassa"])
def test_q1_a_made_up_signature_is_refused(content: bytes, ak: SoftwareAk) -> None:
    header = struct.pack(">HH", ak.scheme, SHA256)
    made_up = tpm2b(content * 256) if ak is RSASSA else tpm2b(content * 32) * 2
    with pytest.raises(QuoteRejected, match="signature"):
        verify(encode_quote(attest_of(), header + made_up, encode_pcr_blob(PCRS)), ak)


@pytest.mark.parametrize("kind", ["ecc256", "rsa2048"])
def test_q2_another_key_of_the_same_scheme_is_refused(kind: str) -> None:
    scheme = SignatureScheme.ECDSA if kind == "ecc256" else SignatureScheme.RSASSA
    other = SoftwareAk.generate(kind, scheme)
    registered = ECDSA if kind == "ecc256" else RSASSA
    with pytest.raises(QuoteRejected, match="does not verify"):
        verify(forged(attest_of(), ak=other), registered)


@pytest.mark.parametrize("signer", AK_LABELS)
@pytest.mark.parametrize("registered", AK_LABELS)
def test_q2_quotes_of_one_tpm_pass_only_under_the_ak_that_made_them(signer: str, registered: str) -> None:
    quote = CLEAN.quote(signer, "sha256")
    key = parse_attestation_key(CAPTURE.ak_public(registered))
    question = (key, quote.nonce.encode(), PcrSelection.from_mask(SHA256, 0xFFFF))
    if signer == registered:
        verify_quote(parse_quote(quote.text), *question)
    else:
        with pytest.raises(QuoteRejected, match="scheme"):
            verify_quote(parse_quote(quote.text), *question)


@pytest.mark.parametrize("label", AK_LABELS)
def test_q3_a_quote_relayed_from_another_machine_is_refused(label: str) -> None:
    elsewhere = captures()[1]
    quote = elsewhere.stage("s1-clean").quote(label, "sha256")
    key = parse_attestation_key(CAPTURE.ak_public(label))
    with pytest.raises(QuoteRejected, match="does not verify"):
        verify_quote(
            parse_quote(quote.text), key, quote.nonce.encode(), PcrSelection.from_mask(SHA256, 0xFFFF)
        )


def test_q4_a_weaker_hash_than_the_aks_is_refused() -> None:
    weak = dataclasses.replace(RSASSA, hash_algorithm=SHA1)
    with pytest.raises(QuoteRejected, match="signature hash is sha1, the AK's is sha256"):
        verify(forged(attest_of(), ak=weak), RSASSA)


def test_q4_an_hmac_is_not_a_signature() -> None:
    hmac = struct.pack(">HH", 0x0005, SHA256) + bytes(32)
    with pytest.raises(MalformedEvidence, match="scheme 0x0005"):
        verify(encode_quote(attest_of(), hmac, encode_pcr_blob(PCRS)))


def test_q4_an_ak_without_a_fixed_scheme_is_refused() -> None:
    with pytest.raises(UnsuitableKey, match=r"scheme null \(0x0010\)"):
        parse_attestation_key(rsa_public(b"\xc1" * 256, scheme=b"\x00\x10"))


@pytest.mark.parametrize(
    ("used", "agreed"),
    [
        (SignatureScheme.RSASSA, SignatureScheme.RSAPSS),
        (SignatureScheme.RSAPSS, SignatureScheme.RSASSA),
    ],
)
def test_q5_another_scheme_than_the_aks_is_refused(used: SignatureScheme, agreed: SignatureScheme) -> None:
    signer, registered = (dataclasses.replace(RSASSA, scheme=scheme) for scheme in (used, agreed))
    with pytest.raises(QuoteRejected, match=f"scheme is {used.label}, the AK's is {agreed.label}"):
        verify(forged(attest_of(), ak=signer), registered)


def raw_rsa_signature(number: int, size: int = 256) -> bytes:
    return struct.pack(">HH", SignatureScheme.RSASSA, SHA256) + tpm2b(number.to_bytes(size, "big"))


def rsa_private_operation(padded: bytes) -> int:
    assert isinstance(RSASSA.private_key, rsa.RSAPrivateKey)
    numbers = RSASSA.private_key.private_numbers()
    return pow(int.from_bytes(padded, "big"), numbers.d, numbers.public_numbers.n)


def pkcs1_padding(message: bytes, *, filler: int = 202) -> bytes:
    """EMSA-PKCS1-v1_5 for 256 bytes; with less filler, zeros follow the digest."""
    info = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(message).digest()
    return (b"\x00\x01" + b"\xff" * filler + b"\x00" + info).ljust(256, b"\x00")


def test_q6_the_raw_signature_of_the_test_is_a_good_one() -> None:
    signature = raw_rsa_signature(rsa_private_operation(pkcs1_padding(attest_of())))
    verify(encode_quote(attest_of(), signature, encode_pcr_blob(PCRS)), RSASSA)


@pytest.mark.parametrize("filler", [8, 100, 201])
def test_q6_padding_with_bytes_behind_the_digest_is_refused(filler: int) -> None:
    signature = raw_rsa_signature(rsa_private_operation(pkcs1_padding(attest_of(), filler=filler)))
    with pytest.raises(QuoteRejected, match="does not verify"):
        verify(encode_quote(attest_of(), signature, encode_pcr_blob(PCRS)), RSASSA)


def test_q6_a_signature_with_a_leading_zero_byte_is_refused() -> None:
    number = rsa_private_operation(pkcs1_padding(attest_of()))
    with pytest.raises(QuoteRejected, match="257 bytes, expected 256"):
        verify(encode_quote(attest_of(), raw_rsa_signature(number, 257), encode_pcr_blob(PCRS)), RSASSA)


def test_q6_a_signature_not_below_the_modulus_is_refused() -> None:
    assert isinstance(RSASSA.private_key, rsa.RSAPrivateKey)
    modulus = RSASSA.private_key.public_key().public_numbers().n
    genuine = rsa_private_operation(pkcs1_padding(attest_of()))
    equivalents = [modulus, *([genuine + modulus] if genuine + modulus < 1 << 2048 else [])]
    for number in equivalents:
        with pytest.raises(QuoteRejected, match="does not verify"):
            verify(encode_quote(attest_of(), raw_rsa_signature(number), encode_pcr_blob(PCRS)), RSASSA)


@pytest.mark.parametrize("exponent", [1, 3, 5, 65539, 0xFFFFFFFF])
def test_q6_an_ak_with_another_exponent_is_refused(exponent: int) -> None:
    with pytest.raises(UnsuitableKey, match=f"exponent {exponent}"):
        parse_attestation_key(rsa_public(b"\xc1" * 256, exponent=exponent))


@pytest.mark.parametrize("kind", ["ecc256", "ecc384", "ecc521"])
def test_q7_numbers_outside_the_group_are_refused(kind: str) -> None:
    ak = SoftwareAk.generate(kind, SignatureScheme.ECDSA)
    public_key = key_of(ak).public_key
    assert not isinstance(public_key, rsa.RSAPublicKey)
    order, size = group_order(public_key.curve), (public_key.key_size + 7) // 8
    r, s = ak.sign_ecdsa(attest_of())
    wrapped = [(r + order, s), (r, s + order)]
    for pair in [(0, s), (r, 0), (0, 0), (order, s), (r, order), *wrapped]:
        if max(pair) >= 1 << size * 8:
            continue
        header = struct.pack(">HH", SignatureScheme.ECDSA, SHA256)
        signature = header + b"".join(tpm2b(number.to_bytes(size, "big")) for number in pair)
        with pytest.raises(QuoteRejected, match="outside 1 to the order"):
            verify(encode_quote(attest_of(), signature, encode_pcr_blob(PCRS)), ak)


def test_q7_empty_numbers_are_zero_and_refused() -> None:
    signature = struct.pack(">HH", SignatureScheme.ECDSA, SHA256) + tpm2b(b"") + tpm2b(b"")
    with pytest.raises(QuoteRejected, match="outside 1 to the order"):
        verify(encode_quote(attest_of(), signature, encode_pcr_blob(PCRS)))


def test_q7_overlong_numbers_are_refused() -> None:
    r, s = ECDSA.sign_ecdsa(attest_of())
    header = struct.pack(">HH", SignatureScheme.ECDSA, SHA256)
    signature = header + tpm2b(r.to_bytes(33, "big")) + tpm2b(s.to_bytes(32, "big"))
    with pytest.raises(QuoteRejected, match="longer than the curve's 32 bytes"):
        verify(encode_quote(attest_of(), signature, encode_pcr_blob(PCRS)))


def test_q7_short_p521_numbers_and_coordinates_pass() -> None:
    ak = SoftwareAk.generate("ecc521", SignatureScheme.ECDSA, SHA512)
    attest = quote_attest(nonce=NONCE, selections=[SELECTION], digest=PCRS.digest(SHA512))
    header = struct.pack(">HH", SignatureScheme.ECDSA, SHA512)
    stripped = (number.to_bytes((number.bit_length() + 7) // 8, "big") for number in ak.sign_ecdsa(attest))
    signature = header + b"".join(tpm2b(number) for number in stripped)
    public_key = key_of(ak).public_key
    assert not isinstance(public_key, rsa.RSAPublicKey)
    point = public_key.public_numbers()
    x, y = (number.to_bytes((number.bit_length() + 7) // 8, "big") for number in (point.x, point.y))
    key = parse_attestation_key(ecc_public(x, y, 0x0005, scheme=b"\x00\x18\x00\x0d"))
    quote = parse_quote(encode_quote(attest, signature, encode_pcr_blob(PCRS)))
    assert verify_quote(quote, key, NONCE, ASKED).pcrs == PCRS


@pytest.mark.parametrize("label", AK_LABELS)
def test_q8_a_genuine_quote_for_an_earlier_nonce_is_refused(label: str) -> None:
    old, now = CLEAN.quote(label, "sha256"), CAPTURE.stage("s2-tampered")
    key = parse_attestation_key(old.ak_public)
    with pytest.raises(QuoteRejected, match="nonce"):
        verify_quote(parse_quote(old.text), key, now.nonce.encode(), PcrSelection.from_mask(SHA256, 0xFFFF))


@pytest.mark.parametrize(
    "quoted",
    [
        base64.b64encode(NONCE),
        base64.b64decode(NONCE),
        hashlib.sha256(NONCE).digest(),
        NONCE.lower(),
        b'"' + NONCE + b'"',
    ],
)
def test_q13_no_other_decoding_of_the_nonce_is_taken(quoted: bytes) -> None:
    with pytest.raises(QuoteRejected, match="nonce"):
        verify(forged(attest_of(nonce=quoted)))


@pytest.mark.parametrize(
    "quoted", [b"", NONCE[:-1], NONCE[1:], NONCE + b"\x00", NONCE + b"\n", NONCE + NONCE]
)
def test_q14_a_part_of_the_nonce_or_more_than_it_is_refused(quoted: bytes) -> None:
    with pytest.raises(QuoteRejected, match="nonce"):
        verify(forged(attest_of(nonce=quoted)))


@pytest.mark.parametrize("magic", [0, 0xFF544348, 0x474354FF])
def test_q15_data_that_the_tpm_did_not_generate_are_refused(magic: int) -> None:
    with pytest.raises(MalformedEvidence, match="TPM_GENERATED"):
        verify(forged(attest_of(magic=magic)))


def test_q16_a_certification_is_not_a_quote() -> None:
    head = quote_attest(nonce=NONCE, selections=[], digest=b"", kind=0x8017)[:-6]
    attest = head + tpm2b(b"\x00\x0b" + bytes(32)) + tpm2b(b"\x00\x0b" + bytes(32))
    with pytest.raises(QuoteRejected, match="certify structure, not a quote"):
        verify(forged(attest))


@pytest.mark.parametrize("kind", [0x8014, 0x8015, 0x8016, 0x8017, 0x8019, 0x801A, 0x801C])
def test_q16_a_quote_under_another_type_is_refused(kind: int) -> None:
    with pytest.raises(KeylimeError):
        verify(forged(attest_of(kind=kind)))


def test_q17_values_that_the_tpm_did_not_sign_are_refused() -> None:
    nicer = PcrValues(SHA256, {**PCRS.values, 10: b"\x0b" * 32})
    with pytest.raises(QuoteRejected, match="do not hash to the digest"):
        verify(forged(attest_of(), pcrs=nicer))


def test_q17_the_digest_is_under_the_hash_of_the_signature() -> None:
    attest = quote_attest(nonce=NONCE, selections=[SELECTION], digest=PCRS.digest(SHA1))
    with pytest.raises(QuoteRejected, match="do not hash to the digest"):
        verify(forged(attest))


def test_q18_values_of_other_registers_under_the_wanted_labels_are_refused() -> None:
    quoted = PcrValues(SHA256, {16: b"\x0a" * 32, 23: b"\x10" * 32})
    shown = PcrValues(SHA256, {10: b"\x0a" * 32, 16: b"\x10" * 32})
    assert quoted.digest(SHA256) == shown.digest(SHA256)
    with pytest.raises(QuoteRejected, match="quoted sha256:16,23, asked for was sha256:10,16"):
        verify(forged(attest_of(quoted), pcrs=shown), selection=shown.selection)
    with pytest.raises(QuoteRejected, match="labelled sha256:10,16, the TPM quoted sha256:16,23"):
        verify(forged(attest_of(quoted), pcrs=shown), selection=quoted.selection)


@pytest.mark.parametrize("missing", sorted(PCRS.values))
def test_q19_a_register_left_out_is_refused(missing: int) -> None:
    fewer = PcrValues(SHA256, {index: value for index, value in PCRS.values.items() if index != missing})
    with pytest.raises(QuoteRejected, match="asked for was sha256:0,10,16"):
        verify(forged(attest_of(fewer), pcrs=fewer))


def test_q19_an_empty_selection_is_refused() -> None:
    empty = quote_attest(
        nonce=NONCE, selections=[pcr_selection(SHA256, [])], digest=hashlib.sha256().digest()
    )
    with pytest.raises(QuoteRejected, match="quoted sha256:none"):
        verify(forged(empty))
    with pytest.raises(MalformedEvidence, match="no PCR"):
        verify(encode_quote(empty, ECDSA.sign(empty), encode_pcr_blob(PcrValues(SHA256, {}))))


def test_q19_no_selection_at_all_is_refused() -> None:
    none = quote_attest(nonce=NONCE, selections=[], digest=b"")
    with pytest.raises(QuoteRejected, match="0 PCR banks"):
        verify(forged(none))


def test_q19_asking_for_nothing_never_passes() -> None:
    empty = quote_attest(
        nonce=NONCE, selections=[pcr_selection(SHA256, [])], digest=hashlib.sha256().digest()
    )
    with pytest.raises(QuoteRejected, match="no PCR was asked for"):
        verify(forged(empty), selection=PcrSelection.from_mask(SHA256, 0))


@pytest.mark.parametrize("extra", [1, 11, 15, 17, 23])
def test_q20_a_register_that_was_not_asked_for_is_refused(extra: int) -> None:
    more = PcrValues(SHA256, {**PCRS.values, extra: bytes(32)})
    with pytest.raises(QuoteRejected, match="asked for was sha256:0,10,16"):
        verify(forged(attest_of(more), pcrs=more))


def test_q21_another_bank_than_agreed_is_refused() -> None:
    sha1_bank = PcrValues(SHA1, {index: value[:20] for index, value in PCRS.values.items()})
    with pytest.raises(QuoteRejected, match="quoted sha1:0,10,16, asked for was sha256:0,10,16"):
        verify(forged(attest_of(sha1_bank), pcrs=sha1_bank))


def test_q21_a_genuine_sha1_quote_does_not_answer_for_sha256() -> None:
    quote = CLEAN.quote("ecdsa", "sha1")
    key = parse_attestation_key(quote.ak_public)
    with pytest.raises(QuoteRejected, match="asked for was sha256"):
        verify_quote(
            parse_quote(quote.text), key, quote.nonce.encode(), PcrSelection.from_mask(SHA256, 0xFFFF)
        )


def test_q21_the_label_of_the_bank_in_the_blob_is_compared_too() -> None:
    sm3_label = PcrValues(HashAlgorithm.SM3_256, PCRS.values)  # the same bytes under a bank of the same size
    with pytest.raises(QuoteRejected, match="labelled sm3_256:0,10,16"):
        verify(forged(attest_of(), pcrs=sm3_label))


@pytest.mark.parametrize(
    "selections",
    [
        [SELECTION, SELECTION],
        [SELECTION, pcr_selection(SHA1, [10])],
        [SELECTION, pcr_selection(SHA256, [])],
        [pcr_selection(SHA256, [0]), pcr_selection(SHA256, [10, 16])],
    ],
)
def test_q22_more_than_one_bank_is_refused(selections: list[bytes]) -> None:
    attest = quote_attest(nonce=NONCE, selections=selections, digest=PCRS.digest(SHA256))
    with pytest.raises(QuoteRejected, match="2 PCR banks"):
        verify(forged(attest))


def test_q22_two_banks_in_the_blob_are_refused() -> None:
    blob = bytearray(encode_pcr_blob(PCRS))
    blob[0] = 2
    blob[12:20] = blob[4:12]
    with pytest.raises(MalformedEvidence, match="2 banks"):
        verify(encode_quote(attest_of(), ECDSA.sign(attest_of()), bytes(blob)))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_q23_trailing_bytes_are_refused_even_when_signed(position: int) -> None:
    attest = attest_of() + (b"\x00" if position == 0 else b"")
    parts = [attest, ECDSA.sign(attest), encode_pcr_blob(PCRS)]
    if position:
        parts[position] += b"\x00"
    with pytest.raises(MalformedEvidence):
        verify(encode_quote(*parts))


@pytest.mark.parametrize("offset", [6, 42])
def test_q23_length_fields_beyond_the_end_are_refused(offset: int) -> None:
    attest = bytearray(attest_of())
    attest[offset : offset + 2] = b"\x00\x42"
    attest = attest[: offset + 40]
    with pytest.raises(MalformedEvidence, match="cut short"):
        verify(forged(bytes(attest)))


@pytest.mark.parametrize(
    ("offset", "replacement"),
    [
        (12, b"\x04\x00\x03\x00\x04"),  # a second bank, not counted
        (132, b"\x02\x00\x00\x00"),  # more lists than there are
        (132, b"\xff\xff\xff\xff"),
        (136, b"\x08\x00\x00\x00"),  # more digests than registers
        (136, b"\x02\x00\x00\x00"),
        (140, b"\x14\x00"),  # a digest as short as SHA-1
        (140, b"\x40\x00"),  # as long as SHA-512
        (140, b"\xff\xff"),
        (140 + 3 * 66, b"\x20\x00"),  # a fourth digest
        (140 + 2 + 32, b"\x01"),  # a byte behind a digest
    ],
)
def test_q24_a_blob_outside_its_fixed_layout_is_refused(offset: int, replacement: bytes) -> None:
    blob = bytearray(encode_pcr_blob(PCRS))
    blob[offset : offset + len(replacement)] = replacement
    with pytest.raises(MalformedEvidence):
        verify(encode_quote(attest_of(), ECDSA.sign(attest_of()), bytes(blob)))


def test_q25_q26_q27_clock_and_firmware_reach_the_appraisal_as_signed() -> None:
    attest = attest_of(clock=5, reset_count=6, restart_count=7, safe=0, firmware_version=8)
    verified = verify_quote(parse_quote(forged(attest)), key_of(ECDSA), NONCE, ASKED)
    clock = verified.clock
    assert (clock.clock, clock.reset_count, clock.restart_count, clock.safe) == (5, 6, 7, False)
    assert verified.firmware_version == 8


def test_q31_the_hash_that_is_reported_is_that_of_the_structures() -> None:
    ak = dataclasses.replace(RSASSA, hash_algorithm=SHA512)
    attest = quote_attest(nonce=NONCE, selections=[SELECTION], digest=PCRS.digest(SHA512))
    verified = verify_quote(parse_quote(forged(attest, ak=ak)), key_of(ak), NONCE, ASKED)
    assert (verified.signature_hash, verified.pcrs.bank) == (SHA512, SHA256)


GOOD = forged(attest_of())
ATTEST, SIGNATURE, BLOB = GOOD[1:].split(":")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r",
        "r::",
        ":::",
        GOOD[1:],
        "d" + GOOD[1:],
        "R" + GOOD[1:],
        "rr" + GOOD[1:],
        " " + GOOD,
        GOOD + " ",
        GOOD + "\n",
        GOOD + ":",
        GOOD + ":AAAA",
        GOOD.replace(":", "::"),
        GOOD.replace(":", ": "),
        GOOD.replace(":", ";"),
        f"r{ATTEST}:{SIGNATURE}",
        f"r{SIGNATURE}:{ATTEST}:{BLOB}",
        f"r{ATTEST[:40]}\n{ATTEST[40:]}:{SIGNATURE}:{BLOB}",
        f"r{ATTEST[:40]}={ATTEST[40:]}:{SIGNATURE}:{BLOB}",
        f"r{ATTEST.rstrip('=')[:-1]}:{SIGNATURE}:{BLOB}",
        f"r{ATTEST}====:{SIGNATURE}:{BLOB}",
        f"r{ATTEST}:{SIGNATURE}:{BLOB.replace('A', chr(0xFF21), 1)}",
        f"r{ATTEST}:{SIGNATURE}:{BLOB.replace('A', chr(0xD800), 1)}",
        f"r{ATTEST}:{SIGNATURE}:{BLOB.replace('A', chr(0), 1)}",
        f"r{ATTEST.replace('/', '_').replace('+', '-')}:{SIGNATURE}:{BLOB}",
    ],
)
def test_q32_any_other_spelling_of_a_quote_is_malformed(text: str) -> None:
    assert text != GOOD
    with pytest.raises(MalformedEvidence):
        parse_quote(text)


def test_q32_stray_bits_before_the_base64_padding_are_refused() -> None:
    parts = {"attestation": ATTEST, "signature": SIGNATURE, "PCR": BLOB}
    name = next(name for name, part in parts.items() if part.endswith("="))
    clean = parts[name]
    last = clean.rstrip("=")[-1]
    stray = clean.rstrip("=")[:-1] + chr(ord(last) + 1) + "=" * clean.count("=")
    assert base64.b64decode(stray, validate=True) == base64.b64decode(clean)
    text = "r" + ":".join(stray if key == name else part for key, part in parts.items())
    with pytest.raises(MalformedEvidence, match=f"{name} part of the quote is not canonical"):
        parse_quote(text)
