"""Attacks on quotes, Q1 to Q32 of the attack catalogue, judged as whole rounds.

What parsing and verification refuse by themselves is tested byte by byte in `test_quote_attacks`; here counts
that the refusal becomes the verdict. Every machine used passes when it is honest (first test).
"""

import base64
import dataclasses
import hashlib
import random
import string
import struct
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from keylime.appraisal.appraise import appraise
from keylime.appraisal.challenge import make_challenge, stored_evidence_challenge
from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.reference import AcceptedAlgorithms, Reference
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected
from keylime.errors import UnsuitableKey
from keylime.hashes import HashAlgorithm
from keylime.nonce import new_nonce
from keylime.tpm.keys import SignatureScheme, group_order, parse_attestation_key
from keylime.tpm.pcr import DATA_PCR, PcrValues, data_pcr_value, encode_pcr_blob, extend
from keylime.tpm.quote import encode_quote
from keylime.tpm.tpm_policy import TpmPolicy
from tests.appraisal_rounds import QUOTE, Watch, events, forged_quote, quoted_values
from tests.captures import AK_LABELS, capture
from tests.evidence import (
    EVERYTHING,
    SoftwareMachine,
    boot_policy,
    captured_challenge,
    captured_reply,
    policy_of,
    reference,
)
from tests.fakes.software_ak import SoftwareAk, ecc_public, pcr_selection, quote_attest, rsa_public, tpm2b

SHA1, SHA256, SHA512 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA512
CLEAN = capture("direct-efistub").stage("s1-clean")
TAMPERED = capture("direct-efistub").stage("s2-tampered")
ELSEWHERE = capture("grub-secureboot").stage("s1-clean")
POLICY = policy_of([CLEAN.ascii_list])
ECDSA = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
RSASSA = SoftwareAk.generate("rsa2048", SignatureScheme.RSASSA)
RSA_FIELDS = {"enc_alg": "rsa2048", "sign_alg": "rsassa"}


def known_good(ak_public: bytes, **changes: object) -> Reference:
    return reference(ak_public, measured_boot=boot_policy(), runtime_policy=POLICY, **changes)


@pytest.fixture
def watch() -> Watch:
    """A machine with measured boot and a runtime policy, not seen before."""
    machine = SoftwareMachine.of_stage(CLEAN)
    machine.ak = ECDSA
    return Watch(machine, known_good(ECDSA.tpm2b_public))


@pytest.fixture
def rsa_watch() -> Watch:
    machine = SoftwareMachine.of_stage(CLEAN)
    machine.ak = RSASSA
    return Watch(machine, known_good(RSASSA.tpm2b_public))


def with_signature(watch: Watch, signature: bytes) -> list[str]:
    """The findings when the honest attestation carries `signature`."""
    challenge = watch.challenge()
    attest = base64.b64decode(forged_quote(watch.machine, challenge)[1:].split(":")[0])
    blob = encode_pcr_blob(quoted_values(watch.machine, challenge))
    fields = RSA_FIELDS if watch.machine.ak is RSASSA else {}
    reply = watch.machine.answer(challenge, quote=encode_quote(attest, signature, blob), **fields)
    return events(watch.judge(reply, challenge))


def test_the_honest_machines_pass_and_so_do_their_forged_but_true_quotes(
    watch: Watch, rsa_watch: Watch
) -> None:
    """Without this, every refusal here could have another reason."""
    assert isinstance(watch.forge(), Accepted)
    watch.accept()
    assert isinstance(rsa_watch.round(**RSA_FIELDS), Accepted)


@pytest.mark.parametrize("content", [b"\x00", b"\x5a", b"\xff"])
def test_q1_a_made_up_signature_fails(watch: Watch, rsa_watch: Watch, content: bytes) -> None:
    ecdsa = struct.pack(">HH", SignatureScheme.ECDSA, SHA256) + tpm2b(content * 32) * 2
    rsassa = struct.pack(">HH", SignatureScheme.RSASSA, SHA256) + tpm2b(content * 256)
    assert with_signature(watch, ecdsa) == [QUOTE]
    assert with_signature(rsa_watch, rsassa) == [QUOTE]


@pytest.mark.parametrize("registered", AK_LABELS)
@pytest.mark.parametrize("signer", AK_LABELS)
def test_q2_only_the_registered_ak_of_a_tpm_counts(signer: str, registered: str) -> None:
    known = known_good(capture("direct-efistub").ak_public(registered), ignore_tomtou=True)
    reply = captured_reply(CLEAN, signer, "sha256")
    verdict = appraise(reply, captured_challenge(CLEAN, known), known, Checkpoint.fresh())
    assert isinstance(verdict, Accepted if signer == registered else Rejected)
    lying = captured_reply(CLEAN, registered, "sha256")
    lying = replace_reply(lying, quote=reply.quote)
    verdict = appraise(lying, captured_challenge(CLEAN, known), known, Checkpoint.fresh())
    assert isinstance(verdict, Accepted) if signer == registered else events(verdict) == [QUOTE]


def test_q2_another_key_of_the_same_kind_fails(watch: Watch) -> None:
    assert events(watch.forge(ak=SoftwareAk.generate("ecc256", SignatureScheme.ECDSA))) == [QUOTE]


def replace_reply(reply: Any, **fields: object) -> Any:
    return type(reply)(**{**{name: getattr(reply, name) for name in reply.__struct_fields__}, **fields})


@pytest.mark.parametrize("label", AK_LABELS)
def test_q3_a_whole_quote_relayed_from_a_healthy_machine_fails(label: str) -> None:
    known = known_good(capture("direct-efistub").ak_public(label))
    reply = captured_reply(ELSEWHERE, label, "sha256")
    challenge = stored_evidence_challenge(known, frozenset(range(16)), ELSEWHERE.nonce)
    assert events(appraise(reply, challenge, known, Checkpoint.fresh())) == [QUOTE]


@pytest.mark.parametrize(
    ("accepted", "event"),
    [
        ({"hashes": frozenset({"sha384"})}, "qoute_validation.invalid_hash_alg"),
        ({"signing": frozenset({"rsapss"})}, "qoute_validation.invalid_sign_alg"),
        ({"encryption": frozenset({"rsa2048"})}, "qoute_validation.invalid_enc_alg"),
    ],
)
def test_q4_an_algorithm_that_the_operator_does_not_accept_fails(
    watch: Watch, accepted: dict[str, frozenset[str]], event: str
) -> None:
    watch.known = replace(watch.known, accepted=replace(EVERYTHING, **accepted))
    assert events(watch.round()) == [event]


def test_q4_the_hash_of_the_signature_is_held_to_the_list_as_well() -> None:
    """A SHA-256 bank signed with SHA-1 is as weak as SHA-1."""
    weak = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA, SHA1)
    machine = SoftwareMachine.of_stage(CLEAN)
    machine.ak = weak
    strict = AcceptedAlgorithms(frozenset({"sha256"}), EVERYTHING.encryption, EVERYTHING.signing)
    watch = Watch(machine, known_good(weak.tpm2b_public, accepted=strict))
    assert events(watch.round()) == ["qoute_validation.invalid_hash_alg"]
    watch.known = replace(watch.known, accepted=EVERYTHING)
    watch.accept()


def test_q4_an_hmac_is_no_signature(watch: Watch) -> None:
    assert with_signature(watch, struct.pack(">HH", 0x0005, SHA256) + bytes(32)) == [QUOTE]


def test_q5_another_scheme_than_that_of_the_ak_fails(rsa_watch: Watch) -> None:
    pss = dataclasses.replace(RSASSA, scheme=SignatureScheme.RSAPSS)
    challenge = rsa_watch.challenge()
    quote = forged_quote(rsa_watch.machine, challenge, ak=pss)
    for label in ("rsassa", "rsapss"):
        fields = {"enc_alg": "rsa2048", "sign_alg": label, "quote": quote}
        reply = rsa_watch.machine.answer(challenge, **fields)
        expected = QUOTE if label == "rsassa" else "qoute_validation.invalid_sign_alg"
        assert events(rsa_watch.judge(reply, challenge)) == [expected]


def raw_rsa_signature(number: int, size: int = 256) -> bytes:
    return struct.pack(">HH", SignatureScheme.RSASSA, SHA256) + tpm2b(number.to_bytes(size, "big"))


@pytest.mark.parametrize("defect", ["none", "padding", "leading zero", "modulus", "short"])
def test_q6_a_malformed_rsa_signature_fails(rsa_watch: Watch, defect: str) -> None:
    challenge = rsa_watch.challenge()
    attest = base64.b64decode(forged_quote(rsa_watch.machine, challenge)[1:].split(":")[0])
    assert isinstance(RSASSA.private_key, rsa.RSAPrivateKey)
    numbers = RSASSA.private_key.private_numbers()
    info = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(attest).digest()
    filler = 8 if defect == "padding" else 202
    padded = (b"\x00\x01" + b"\xff" * filler + b"\x00" + info).ljust(256, b"\x00")
    number = pow(int.from_bytes(padded, "big"), numbers.d, numbers.public_numbers.n)
    signature = {
        "leading zero": raw_rsa_signature(number, 257),
        "modulus": raw_rsa_signature(numbers.public_numbers.n),
        "short": struct.pack(">HH", SignatureScheme.RSASSA, SHA256) + tpm2b(number.to_bytes(256, "big")[1:]),
    }.get(defect, raw_rsa_signature(number))
    blob = encode_pcr_blob(quoted_values(rsa_watch.machine, challenge))
    quote = encode_quote(attest, signature, blob)
    reply = rsa_watch.machine.answer(challenge, quote=quote, **RSA_FIELDS)
    verdict = rsa_watch.judge(reply, challenge)
    assert isinstance(verdict, Accepted) if defect == "none" else events(verdict) == [QUOTE]


@pytest.mark.parametrize("exponent", [1, 3, 5, 65539])
def test_q6_a_weak_exponent_never_becomes_a_reference(exponent: int) -> None:
    with pytest.raises(UnsuitableKey, match="exponent"):
        reference(rsa_public(b"\xc1" * 256, exponent=exponent))


def test_q7_numbers_outside_the_group_fail_and_short_ones_pass() -> None:
    ak = SoftwareAk.generate("ecc521", SignatureScheme.ECDSA, SHA512)
    public_key = parse_attestation_key(ak.tpm2b_public).public_key
    assert not isinstance(public_key, rsa.RSAPublicKey)
    point, order = public_key.public_numbers(), group_order(public_key.curve)
    x, y = (number.to_bytes((number.bit_length() + 7) // 8, "big") for number in (point.x, point.y))
    machine = SoftwareMachine.of_stage(CLEAN)
    machine.ak = ak
    accepted = replace(EVERYTHING, encryption=frozenset({"ecc521"}))
    known = known_good(ecc_public(x, y, 0x0005, scheme=b"\x00\x18\x00\x0d"), accepted=accepted)
    for change in ("none", "r = 0", "s = 0", "r = order", "s + order"):
        watch = Watch(machine, known)
        challenge = watch.challenge()
        attest = base64.b64decode(forged_quote(machine, challenge, digest_hash=SHA512)[1:].split(":")[0])
        r, s = ak.sign_ecdsa(attest)
        r, s = {"r = 0": (0, s), "s = 0": (r, 0), "r = order": (order, s), "s + order": (r, s + order)}.get(
            change, (r, s)
        )
        header = struct.pack(">HH", SignatureScheme.ECDSA, SHA512)
        numbers = b"".join(tpm2b(number.to_bytes((number.bit_length() + 7) // 8, "big")) for number in (r, s))
        quote = encode_quote(attest, header + numbers, encode_pcr_blob(quoted_values(machine, challenge)))
        verdict = watch.judge(machine.answer(challenge, quote=quote, enc_alg="ecc521"), challenge)
        assert isinstance(verdict, Accepted) if change == "none" else events(verdict) == [QUOTE], change


def test_q8_an_old_quote_does_not_answer_a_new_nonce(watch: Watch) -> None:
    challenge = watch.challenge()
    recorded = watch.machine.answer(challenge)
    assert isinstance(watch.judge(recorded, challenge), Accepted)
    assert events(watch.judge(recorded, watch.challenge())) == [QUOTE]


def test_q9_a_second_submission_of_one_answer_fails(watch: Watch) -> None:
    """The nonce tells, drawn for each challenge: the TPM's clock may stand still between two quotes."""
    challenges = [watch.challenge() for _ in range(64)]
    assert len({challenge.nonce for challenge in challenges}) == len(challenges)
    reply = watch.machine.answer(challenges[0])
    assert isinstance(watch.judge(reply, challenges[0]), Accepted)
    assert [events(watch.judge(reply, later)) for later in challenges[1:]] == [[QUOTE]] * 63


def test_q10_the_nonce_of_another_agent_or_session_fails(watch: Watch) -> None:
    neighbour = Watch(SoftwareMachine.of_stage(CLEAN), watch.known)
    foreign, own, abandoned = neighbour.challenge(), watch.challenge(), watch.challenge()
    for other in (foreign, abandoned):
        assert events(watch.judge(watch.machine.answer(other), own)) == [QUOTE]


def test_q11_an_answer_that_comes_after_its_round_was_given_up_fails(watch: Watch) -> None:
    """In pull mode a nonce lives as long as its request; the next round has another one."""
    given_up = watch.challenge()
    late = watch.machine.answer(given_up)
    now = watch.challenge()
    assert now.nonce != given_up.nonce
    assert events(watch.judge(late, now)) == [QUOTE]


def test_q12_nonces_differ_and_do_not_follow_from_a_seed() -> None:
    random.seed(1)
    first = [new_nonce() for _ in range(1000)]
    random.seed(1)
    second = [new_nonce() for _ in range(1000)]
    assert len({*first, *second}) == 2000
    assert all(len(nonce) == 20 for nonce in first)
    alphabet = set(string.ascii_letters + string.digits)
    for position in range(20):  # each of 62 characters 32 times on average: 5 is far outside of chance
        seen = [nonce[position] for nonce in (*first, *second)]
        assert set(seen) <= alphabet
        assert min(seen.count(character) for character in alphabet) > 5


def test_q13_no_other_decoding_of_the_nonce_is_taken(watch: Watch) -> None:
    nonce = watch.challenge().nonce.encode()
    for quoted in (
        base64.b64encode(nonce),
        base64.b64decode(nonce),
        hashlib.sha256(nonce).digest(),
        nonce.swapcase(),
        nonce.decode().encode("utf-16-le"),
    ):
        challenge = msgspec.structs.replace(watch.challenge(), nonce=nonce.decode())
        quote = forged_quote(watch.machine, challenge, nonce=quoted)
        assert events(watch.judge(watch.machine.answer(challenge, quote=quote), challenge)) == [QUOTE]


def test_q14_a_part_of_the_nonce_or_more_than_it_fails(watch: Watch) -> None:
    for change in (lambda n: n[:-1], lambda n: n[1:], lambda n: n + b"\0", lambda n: n * 2, lambda n: b""):
        challenge = watch.challenge()
        quote = forged_quote(watch.machine, challenge, nonce=change(challenge.nonce.encode()))
        assert events(watch.judge(watch.machine.answer(challenge, quote=quote), challenge)) == [QUOTE]


@pytest.mark.parametrize("magic", [0, 0xFF544348, 0x474354FF])
def test_q15_data_that_the_tpm_did_not_make_fail(watch: Watch, magic: int) -> None:
    assert events(watch.forge(magic=magic)) == [QUOTE]


@pytest.mark.parametrize("kind", [0x8014, 0x8015, 0x8016, 0x8017, 0x8019, 0x801A, 0x801C])
def test_q16_another_attestation_than_a_quote_fails(watch: Watch, kind: int) -> None:
    assert events(watch.forge(kind=kind)) == [QUOTE]


def test_q16_a_well_formed_certification_fails(watch: Watch) -> None:
    challenge = watch.challenge()
    head = quote_attest(nonce=challenge.nonce.encode(), selections=[], digest=b"", kind=0x8017)[:-6]
    attest = head + tpm2b(b"\x00\x0b" + bytes(32)) * 2
    blob = encode_pcr_blob(quoted_values(watch.machine, challenge))
    quote = encode_quote(attest, watch.machine.ak.sign(attest), blob)
    assert events(watch.judge(watch.machine.answer(challenge, quote=quote), challenge)) == [QUOTE]


@pytest.mark.parametrize("changed", [0, 7, 10, 16])
def test_q17_values_that_the_tpm_did_not_sign_fail(watch: Watch, changed: int) -> None:
    truth = quoted_values(watch.machine, watch.challenge())
    assert events(watch.forge(shown=PcrValues(SHA256, {**truth.values, changed: b"\x0b" * 32}))) == [QUOTE]


def test_q17_a_tampered_machine_cannot_show_good_values(watch: Watch) -> None:
    good = quoted_values(watch.machine, watch.challenge())
    watch.machine.pcrs = dict(TAMPERED.pcrs("sha256"))
    bad = quoted_values(watch.machine, watch.challenge())
    assert events(watch.forge(attested=bad, shown=good)) == [QUOTE]


def test_q18_values_of_other_registers_under_the_wanted_labels_fail() -> None:
    machine = SoftwareMachine(ak=ECDSA)
    known = reference(ECDSA.tpm2b_public, tpm_policy=TpmPolicy.from_operator('{"15": "' + "00" * 32 + '"}'))
    watch = Watch(machine, known)
    watch.accept()
    truth = quoted_values(machine, watch.challenge())  # PCR 15 and 16
    others = PcrValues(SHA256, {16: truth.values[15], 23: truth.values[16]})
    assert others.digest(SHA256) == truth.digest(SHA256)
    assert events(watch.forge(attested=others, shown=truth)) == [QUOTE]
    assert events(watch.forge(attested=truth, shown=others)) == [QUOTE]


@pytest.mark.parametrize("missing", [*range(16), 16])
def test_q19_a_register_left_out_fails(watch: Watch, missing: int) -> None:
    truth = quoted_values(watch.machine, watch.challenge())
    fewer = PcrValues(SHA256, {index: value for index, value in truth.values.items() if index != missing})
    assert events(watch.forge(attested=fewer)) == [QUOTE]


def test_q19_an_empty_selection_fails(watch: Watch) -> None:
    truth = quoted_values(watch.machine, watch.challenge())
    for selections in ([], [pcr_selection(SHA256, [])]):
        assert events(watch.forge(selections=selections)) == [QUOTE]
    assert events(watch.forge(attested=PcrValues(SHA256, {}))) == [QUOTE]
    assert events(watch.forge(selections=[pcr_selection(SHA256, [])], shown=truth)) == [QUOTE]


@pytest.mark.parametrize("extra", [17, 22, 23])
def test_q20_a_register_that_was_not_asked_for_fails(watch: Watch, extra: int) -> None:
    truth = quoted_values(watch.machine, watch.challenge())
    assert DATA_PCR in truth.values, "the data PCR is always asked for, and agents always add it"
    assert events(watch.forge(attested=PcrValues(SHA256, {**truth.values, extra: bytes(32)}))) == [QUOTE]


def test_q21_another_bank_than_the_answer_names_fails(watch: Watch) -> None:
    sha1 = {**CLEAN.pcrs("sha1"), DATA_PCR: data_pcr_value(SHA1, watch.machine.public_key)}
    asked = watch.challenge().pcrs
    bank = PcrValues(SHA1, {index: value for index, value in sha1.items() if index in asked})
    assert events(watch.forge(attested=bank)) == [QUOTE]


def test_q21_a_sha1_bank_fails_where_only_sha256_is_accepted(watch: Watch) -> None:
    machine = SoftwareMachine.of_stage(CLEAN, "sha1")
    machine.ak = ECDSA
    Watch(machine, watch.known).accept()
    strict = replace(EVERYTHING, hashes=frozenset({"sha256"}))
    verdict = Watch(machine, replace(watch.known, accepted=strict)).round()
    assert events(verdict) == ["qoute_validation.invalid_hash_alg"]


def test_q22_two_banks_or_one_bank_twice_fail(watch: Watch) -> None:
    indices = watch.challenge().pcrs
    one = pcr_selection(SHA256, indices)
    for second in (one, pcr_selection(SHA1, indices), pcr_selection(SHA256, [])):
        assert events(watch.forge(selections=[one, second])) == [QUOTE]


def test_q23_trailing_bytes_fail_even_when_signed(watch: Watch) -> None:
    for tails in ((b"\0", b"", b""), (b"", b"\0", b""), (b"", b"", b"\0"), (b"", b"", bytes(532))):
        assert events(watch.forge(tails=tails)) == [QUOTE]


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("claim", [b"\xff\xff", b"\xff\xff\xff\xff"])
def test_q23_claimed_lengths_beyond_the_end_fail(watch: Watch, part: int, claim: bytes) -> None:
    challenge = watch.challenge()
    honest = watch.machine.answer(challenge)
    parts = [bytearray(base64.b64decode(text)) for text in honest.quote[1:].split(":")]
    for offset in range(len(parts[part]) - len(claim)):
        changed = [bytes(each) for each in parts]
        changed[part] = bytes(parts[part][:offset]) + claim + bytes(parts[part][offset + len(claim) :])
        if changed[part] == bytes(parts[part]):
            continue
        reply = replace_reply(honest, quote=encode_quote(*changed))
        assert events(appraise(reply, challenge, watch.known, Checkpoint.fresh())) == [QUOTE]


@pytest.mark.parametrize(
    ("offset", "replacement"),
    [
        (0, b"\x02"),
        (12, b"\x04\x00\x03\x00\x04"),
        (132, b"\x02\x00\x00\x00"),
        (136, b"\x09\x00\x00\x00"),
        (140, b"\x14\x00"),
        (140, b"\x40\x00"),
        (140 + 2 + 32, b"\x01"),
    ],
)
def test_q24_a_blob_outside_its_layout_fails(watch: Watch, offset: int, replacement: bytes) -> None:
    challenge = watch.challenge()
    honest = watch.machine.answer(challenge)
    attest, signature, blob = (base64.b64decode(text) for text in honest.quote[1:].split(":"))
    changed = blob[:offset] + replacement + blob[offset + len(replacement) :]
    assert changed != blob
    reply = replace_reply(honest, quote=encode_quote(attest, signature, changed))
    assert events(watch.judge(reply, challenge)) == [QUOTE]


@pytest.mark.parametrize("counter", ["reset_count", "restart_count"])
def test_q25_another_boot_demands_the_whole_list(watch: Watch, counter: str) -> None:
    watch.accept()
    setattr(watch.machine, counter, getattr(watch.machine, counter) + 1)
    verdict = watch.round()
    assert isinstance(verdict, Incomplete), "never a pass on the old offset"
    assert watch.challenge().ima_entry == 0
    assert watch.accept().checkpoint.reboots == (counter == "reset_count")


@pytest.mark.parametrize("counter", ["reset_count", "restart_count"])
def test_q25_another_boot_does_not_excuse_a_missing_list(watch: Watch, counter: str) -> None:
    watch.accept()
    setattr(watch.machine, counter, getattr(watch.machine, counter) + 1)
    assert events(watch.round(ima_measurement_list=None)) == ["pcr_validation.unused_pcr_10"]


@pytest.mark.parametrize("counter", ["reset_count", "restart_count"])
def test_q25_a_counter_that_falls_fails(watch: Watch, counter: str) -> None:
    setattr(watch.machine, counter, 5)
    watch.accept()
    setattr(watch.machine, counter, 4)
    assert QUOTE in events(watch.round())


def test_q26_a_clock_that_goes_back_fails_when_safe_and_is_noted_when_not(watch: Watch) -> None:
    watch.accept()
    at = watch.checkpoint
    assert QUOTE in events(watch.forge(clock=10))
    watch.checkpoint = at
    verdict = watch.forge(clock=10, safe=0)
    assert isinstance(verdict, Accepted)
    assert any("clock is not safe" in note for note in verdict.notes)


def test_q26_a_clock_that_stands_still_between_two_fresh_quotes_is_no_finding(watch: Watch) -> None:
    assert isinstance(watch.forge(clock=77), Accepted)
    assert isinstance(watch.forge(clock=77), Accepted)
    assert QUOTE in events(watch.forge(clock=76))


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("clock", [1 << 63, 0xFFFF << 48, (1 << 64) - 1])
def test_q26_a_clock_that_was_set_beyond_all_time_fails(watch: Watch, clock: int, is_known: bool) -> None:
    if is_known:
        watch.accept()
    at = watch.checkpoint
    assert events(watch.forge(clock=clock)) == [QUOTE]
    watch.checkpoint = at
    assert isinstance(watch.forge(clock=(1 << 63) - 1), Accepted), "what every database holds"


def test_q27_a_changed_firmware_version_is_noted(watch: Watch) -> None:
    assert watch.accept().notes == ()
    assert watch.accept().notes == (), "nothing to note while it stays"
    verdict = watch.forge(firmware_version=0x1)
    assert isinstance(verdict, Accepted)
    assert any("firmware version changed" in note for note in verdict.notes)
    assert verdict.checkpoint.firmware_version == 1


def data_pcr(watch: Watch, value: bytes) -> PcrValues:
    truth = quoted_values(watch.machine, watch.challenge())
    return PcrValues(SHA256, {**truth.values, DATA_PCR: value})


def test_q28_a_key_bound_between_challenge_and_quote_fails(watch: Watch) -> None:
    theirs = data_pcr_value(SHA256, "another key")
    assert events(watch.forge(attested=data_pcr(watch, theirs))) == ["pcr_validation.invalid_pcr_16"]


def test_q29_a_data_pcr_that_was_not_reset_fails(watch: Watch) -> None:
    digest = SHA256.digest(watch.machine.public_key.encode())
    twice = extend(SHA256, data_pcr_value(SHA256, watch.machine.public_key), digest)
    for value in (twice, bytes(32), digest, b"\xff" * 32):
        assert events(watch.forge(attested=data_pcr(watch, value))) == ["pcr_validation.invalid_pcr_16"]


def test_q29_no_pin_of_the_data_pcr_takes_the_place_of_the_key() -> None:
    """A verifier refuses such a policy; one that was stored before holds beside the key, never instead."""
    machine = SoftwareMachine(ak=ECDSA)
    theirs, own = (data_pcr_value(SHA256, key) for key in ("another key", machine.public_key))

    def pinned(value: bytes) -> Watch:
        policy = TpmPolicy.from_wire(f'{{"16": "{value.hex()}"}}')
        return Watch(machine, reference(ECDSA.tpm2b_public, tpm_policy=policy))

    assert events(pinned(theirs).round()) == ["pcr_validation.invalid_pcr_16"]
    forged = pinned(theirs)
    assert events(forged.forge(attested=data_pcr(forged, theirs))) == ["pcr_validation.invalid_pcr_16"]
    watch = pinned(own)
    watch.accept()
    attested = data_pcr(watch, theirs)
    assert set(events(watch.forge(attested=attested))) == {"pcr_validation.invalid_pcr_16"}


def test_q30_another_public_key_than_the_quote_binds_fails(watch: Watch) -> None:
    assert events(watch.round(pubkey="another key")) == ["pcr_validation.invalid_pcr_16"]
    watch.accept()
    watch.machine.public_key = "a third key, bound but not announced"
    watch.incomplete(pubkey=None)
    assert events(watch.round(pubkey=None)) == ["qoute_validation.no_pubkey"]
    assert events(watch.round(pubkey="a fourth")) == ["pcr_validation.invalid_pcr_16"]


def test_q30_a_new_key_is_accepted_once_the_agent_was_asked_for_it(watch: Watch) -> None:
    watch.accept()
    watch.machine.public_key = "the key of the agent's second start"
    assert not watch.challenge().wants_public_key
    watch.incomplete()
    assert watch.challenge().wants_public_key
    assert watch.accept().checkpoint.public_key == "the key of the agent's second start"


def test_q30_an_agent_that_was_asked_for_its_key_gets_no_second_question(watch: Watch) -> None:
    watch.accept()
    watch.machine.public_key = "new"
    asked = make_challenge(watch.known, watch.checkpoint, new_nonce(), renew_key=True)
    silent = watch.machine.answer(asked, pubkey=None)
    assert events(watch.judge(silent, asked)) == ["pcr_validation.invalid_pcr_16"]


def test_q30_a_new_key_excuses_nothing_else_that_is_wrong(watch: Watch) -> None:
    watch.accept()
    watch.machine.public_key = "new"
    watch.machine.pcrs[23] = b"\x01" * 32
    watch.known = replace(watch.known, tpm_policy=TpmPolicy.from_operator('{"23": "00"}'))
    assert events(watch.round()) == ["pcr_validation.invalid_pcr_16", "pcr_validation.invalid_pcr_23"]


def test_q30_new_keys_in_every_round_do_not_put_a_verdict_off_for_ever(watch: Watch) -> None:
    watch.accept()
    verdicts = []
    for number in range(6):
        watch.machine.public_key = f"key {number}"
        verdicts.append(type(watch.round(pubkey=None)))
    assert verdicts[0] is Incomplete
    assert verdicts[1:] == [Rejected] * 5, "without the key there is nothing to bind"


@pytest.mark.parametrize(
    ("lies", "event"),
    [
        ({"hash_alg": "sha1"}, QUOTE),
        ({"hash_alg": "sha384"}, QUOTE),
        ({"hash_alg": "SHA256"}, "qoute_validation.invalid_hash_alg"),
        ({"hash_alg": ""}, "qoute_validation.invalid_hash_alg"),
        ({"enc_alg": "rsa"}, "qoute_validation.invalid_enc_alg"),
        ({"enc_alg": "ecc384"}, "qoute_validation.invalid_enc_alg"),
        ({"sign_alg": "rsassa"}, "qoute_validation.invalid_sign_alg"),
        ({"sign_alg": "hmac"}, "qoute_validation.invalid_sign_alg"),
        ({"sign_alg": ""}, "qoute_validation.invalid_sign_alg"),
    ],
)
def test_q31_what_the_answer_says_must_be_what_the_structures_are(
    watch: Watch, lies: dict[str, str], event: str
) -> None:
    everything = AcceptedAlgorithms(EVERYTHING.hashes, EVERYTHING.encryption | {"ecc384"}, EVERYTHING.signing)
    watch.known = replace(watch.known, accepted=everything)
    assert events(watch.round(**lies)) == [event]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda quote: "",
        lambda quote: quote[1:],
        lambda quote: "d" + quote[1:],
        lambda quote: " " + quote,
        lambda quote: quote + "\n",
        lambda quote: quote + ":",
        lambda quote: quote.replace(":", "::"),
        lambda quote: quote[:40] + "\n" + quote[40:],
        lambda quote: quote[:40] + "=" + quote[40:],
        lambda quote: quote.replace("A", "\uff21", 1),
        lambda quote: quote.replace("A", "\0", 1),
        lambda quote: "r" + "A" * 10_000_000,
    ],
)
def test_q32_any_other_spelling_of_a_quote_fails(watch: Watch, spoil: Any) -> None:
    challenge = watch.challenge()
    honest = watch.machine.answer(challenge)
    reply = replace_reply(honest, quote=spoil(honest.quote))
    assert events(watch.judge(reply, challenge)) == [QUOTE]


def test_a_challenge_can_be_made_of_every_checkpoint(watch: Watch) -> None:
    """Nothing that a verdict leaves behind keeps the verifier from asking again."""
    for verdict in (watch.round(), watch.round(quote=""), watch.round()):
        assert make_challenge(watch.known, verdict.checkpoint, new_nonce(), renew_key=True).pcrs
