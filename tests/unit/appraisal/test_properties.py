"""Properties that every appraisal must have (P1 to P5, P8 to P10), for inputs that nobody thought of."""

import base64
import contextlib
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keylime.appraisal.appraise import appraise
from keylime.appraisal.challenge import Challenge
from keylime.appraisal.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from keylime.appraisal.memo import AppraisalMemo
from keylime.appraisal.reference import Reference
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected, Verdict
from keylime.errors import KeylimeError, MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import parse_binary_list, parse_line, split_lines
from keylime.ima.runtime_policy import merge, parse_runtime_policy
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.replay import replay_event_log
from keylime.messages.agent import QuoteReply
from keylime.tpm.keys import SignatureScheme, parse_attestation_key
from keylime.tpm.pcr import encode_pcr_blob, parse_pcr_blob
from keylime.tpm.quote import encode_quote, parse_quote
from keylime.tpm.tpm_policy import TpmPolicy
from tests.appraisal_rounds import Watch
from tests.captures import AK_LABELS, Stage, capture, stages
from tests.effort import examples
from tests.evidence import (
    SoftwareMachine,
    boot_policy,
    captured_challenge,
    captured_reply,
    policy_of,
    reference,
)
from tests.fakes.event_logs import build_log, flip, take_apart
from tests.fakes.measured_boot import grub_pcrs, policy, reference_state
from tests.fakes.software_ak import SoftwareAk
from tests.ima_rounds import is_spelling, values_of

AK = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
OTHER_AK = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
SHA256 = HashAlgorithm.SHA256
CLEAN = capture("grub-secureboot").stage("s1-clean")
SMALL = capture("seabios-no-uefi").stage("s1-clean")
EXAMPLE = policy(reference_state())
PARTS = ("attestation", "signature", "PCR blob", "IMA list", "boot log")

quickly = settings(
    deadline=None,
    max_examples=examples(100),
    derandomize=True,  # a run of all tests means the same every time; the fuzz targets look further
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@functools.cache
def policy_for(name: str, stage: str) -> Any:
    return policy_of([capture(name).stage(stage).ascii_list])


def known_good(**changes: object) -> Reference:
    own = {"measured_boot": EXAMPLE, "runtime_policy": policy_for(CLEAN.capture, CLEAN.name)}
    return reference(AK.tpm2b_public, **{**own, **changes})


def machine() -> SoftwareMachine:
    one = SoftwareMachine.of_stage(CLEAN)
    one.ak = AK
    return one


def with_fields(reply: QuoteReply, **fields: object) -> QuoteReply:
    return msgspec.structs.replace(reply, **fields)


@functools.cache
def accepted_round() -> tuple[QuoteReply, Challenge, Reference]:
    """One round of a machine that was not seen before, which is accepted."""
    values = TpmPolicy.from_operator(json.dumps({"15": "00" * 32})).with_mask(range(16))
    watch = Watch(machine(), known_good(tpm_policy=values))
    challenge = watch.challenge()
    reply = watch.machine.answer(challenge)
    assert isinstance(judge(reply, challenge, watch.known), Accepted)
    return reply, challenge, watch.known


def judge(
    reply: QuoteReply, challenge: Challenge, known: Reference, checkpoint: Checkpoint | None = None
) -> Verdict:
    return appraise(reply, challenge, known, checkpoint or Checkpoint.fresh())


def parts_of(reply: QuoteReply) -> dict[str, bytes]:
    quote = (base64.b64decode(text) for text in reply.quote[1:].split(":"))
    logs = ((reply.ima_measurement_list or "").encode(), base64.b64decode(reply.mb_measurement_list or ""))
    return dict(zip(PARTS, (*quote, *logs), strict=True))


def reply_of(reply: QuoteReply, parts: dict[str, bytes]) -> QuoteReply:
    return with_fields(
        reply,
        quote=encode_quote(parts["attestation"], parts["signature"], parts["PCR blob"]),
        # An agent can only send text: bytes that are none arrive as something else.
        ima_measurement_list=parts["IMA list"].decode("utf-8", "replace"),
        mb_measurement_list=base64.b64encode(parts["boot log"]).decode(),
    )


# -- P1: an accepted verdict implies all its parts


@pytest.mark.parametrize(
    "change",
    [
        lambda r, c, k: (r, msgspec.structs.replace(c, nonce=c.nonce[:-1] + "!"), k),
        lambda r, c, k: (r, msgspec.structs.replace(c, nonce=""), k),
        lambda r, c, k: (r, msgspec.structs.replace(c, pcrs=c.pcrs | {20}), k),
        lambda r, c, k: (r, c, replace(k, attestation_key=parse_attestation_key(OTHER_AK.tpm2b_public))),
        lambda r, c, k: (r, c, replace(k, runtime_policy=parse_runtime_policy(no_digests()))),
        lambda r, c, k: (r, c, replace(k, measured_boot=policy({"a": 1}, "reject-all"))),
        lambda r, c, k: (r, c, replace(k, measured_boot=policy(reference_state(scrtm_and_bios=[])))),
        lambda r, c, k: (r, c, replace(k, tpm_policy=TpmPolicy.from_operator('{"15": "11"}'))),
        lambda r, c, k: (r, c, replace(k, accepted=replace(k.accepted, hashes=frozenset()))),
        lambda r, c, k: (r, c, replace(k, accepted=replace(k.accepted, signing=frozenset()))),
        lambda r, c, k: (r, c, replace(k, accepted=replace(k.accepted, encryption=frozenset()))),
        lambda r, c, k: (with_fields(r, ima_measurement_list=None), c, k),
        lambda r, c, k: (with_fields(r, ima_measurement_list=""), c, k),
        lambda r, c, k: (with_fields(r, mb_measurement_list=None), c, k),
        lambda r, c, k: (with_fields(r, mb_measurement_list=""), c, k),
        lambda r, c, k: (with_fields(r, pubkey=None), c, k),
        lambda r, c, k: (with_fields(r, pubkey=r.pubkey + "\n"), c, k),
        lambda r, c, k: (with_fields(r, hash_alg="sha1"), c, k),
        lambda r, c, k: (with_fields(r, enc_alg="ecc384"), c, k),
        lambda r, c, k: (with_fields(r, sign_alg="rsapss"), c, k),
        lambda r, c, k: (with_fields(r, ima_measurement_list_entry=1), c, k),
    ],
)
def test_p1_no_part_of_an_accepted_round_can_be_taken_away(change: Callable[..., Any]) -> None:
    changed = change(*accepted_round())
    assert changed != accepted_round()
    assert not isinstance(judge(*changed), Accepted)


def no_digests() -> str:
    document = policy_for(CLEAN.capture, CLEAN.name).to_document()
    return json.dumps({**document, "digests": {}})


def test_p1_each_listed_digest_is_needed() -> None:
    reply, challenge, known = accepted_round()
    document = known.runtime_policy.to_document()
    names = sorted(document["digests"])
    for name in names[:: 1 + len(names) // 20]:
        if name == "boot_aggregate":
            continue  # follows from the boot log
        digests = {key: values for key, values in document["digests"].items() if key != name}
        fewer = parse_runtime_policy(json.dumps({**document, "digests": digests}))
        verdict = judge(reply, challenge, replace(known, runtime_policy=fewer))
        assert isinstance(verdict, Rejected)
        assert {finding.path for finding in verdict.findings} == {name}


# -- P2: no bit of a whole answer is without meaning


@quickly
@given(st.sampled_from(PARTS[:4]), st.integers(0), st.integers(0, 7))
def test_p2_an_answer_with_a_flipped_bit_is_not_accepted(part: str, position: int, bit: int) -> None:
    reply, challenge, known = accepted_round()
    parts = parts_of(reply)
    # The newline that ends the list is the one byte that means nothing.
    length = len(parts[part]) - (part == "IMA list")
    parts[part] = flip(parts[part], position % length, bit)
    assert not isinstance(judge(reply_of(reply, parts), challenge, known), Accepted)


@pytest.mark.parametrize("part", PARTS[:3])
def test_p2_no_byte_of_the_quote_is_without_meaning(part: str) -> None:
    reply, challenge, known = accepted_round()
    good = parts_of(reply)[part]
    for position in range(len(good)):
        parts = {**parts_of(reply), part: flip(good, position, position % 8)}
        assert isinstance(judge(reply_of(reply, parts), challenge, known), Rejected), position


@quickly
@given(st.integers(0), st.integers(0, 7))
def test_p2_a_flipped_bit_of_the_boot_log_never_changes_what_was_measured(position: int, bit: int) -> None:
    """Data that no digest covers may change; the PCRs and their order of events may not."""
    reply, challenge, known = accepted_round()
    parts = parts_of(reply)
    original = parts["boot log"]
    parts["boot log"] = flip(original, position % len(original), bit)
    if isinstance(judge(reply_of(reply, parts), challenge, known), Accepted):
        logs = (parse_event_log(original), parse_event_log(parts["boot log"]))
        measured = [[(e.pcr, e.digests[SHA256]) for e in log.events if e.is_extended] for log in logs]
        assert measured[0] == measured[1]
        assert replay_event_log(logs[1])[SHA256] == replay_event_log(logs[0])[SHA256]


@quickly
@given(st.sampled_from(PARTS), st.integers(0), st.binary(max_size=8), st.integers(0, 8))
def test_p2_bytes_put_in_or_taken_out_are_not_accepted(part: str, at: int, new: bytes, cut: int) -> None:
    reply, challenge, known = accepted_round()
    parts = parts_of(reply)
    old = parts[part]
    at %= len(old)
    changed = old[:at] + new + old[at + cut :]
    if changed.rstrip(b"\n") == old.rstrip(b"\n"):
        return
    verdict = judge(reply_of(reply, {**parts, part: changed}), challenge, known)
    if part == "boot log" and isinstance(verdict, Accepted):
        digests = [[e.digests for e in parse_event_log(log).events] for log in (old, changed)]
        assert digests[0] == digests[1]
    elif part == "IMA list" and isinstance(verdict, Accepted):
        assert changed.startswith(old), "what follows the covered entries is not judged"
    else:
        assert not isinstance(verdict, Accepted)


@quickly
@given(
    st.sampled_from(PARTS), st.integers(0), st.integers(1), st.sampled_from(["a piece", "the rest", "all"])
)
def test_p2_a_part_that_is_cut_down_or_away_is_not_accepted(
    part: str, at: int, length: int, what: str
) -> None:
    reply, challenge, known = accepted_round()
    parts = parts_of(reply)
    old = parts[part]
    at = 0 if what == "all" else at % len(old)
    end = len(old) if what != "a piece" else at + 1 + length % (len(old) - at)
    changed = old[:at] + old[end:]
    if changed.rstrip(b"\n") == old.rstrip(b"\n"):
        return
    verdict = judge(reply_of(reply, {**parts, part: changed}), challenge, known)
    if part == "boot log" and isinstance(verdict, Accepted):
        digests = [
            [e.digests for e in parse_event_log(log).events if e.is_extended] for log in (old, changed)
        ]
        assert digests[0] == digests[1]
    else:
        assert not isinstance(verdict, Accepted)


# -- P3: covered entries cannot be removed, doubled or swapped


@quickly
@given(st.sampled_from(["remove", "double", "swap", "insert"]), st.integers(0), st.integers(1))
def test_p3_the_covered_entries_stay_as_they_are(how: str, first: int, distance: int) -> None:
    reply, challenge, known = accepted_round()
    lines = split_lines((reply.ima_measurement_list or "").encode())
    one = first % (len(lines) - 1)
    other = one + 1 + (distance - 1) % (len(lines) - 1 - one)
    changed = {
        "remove": lines[:one] + lines[one + 1 :],
        "double": lines[: one + 1] + lines[one:],
        "swap": [*lines[:one], lines[other], *lines[one + 1 : other], lines[one], *lines[other + 1 :]],
        "insert": [*lines[:one], lines[other], *lines[one:]],
    }[how]
    text = b"".join(line + b"\n" for line in changed).decode()
    assert not isinstance(judge(with_fields(reply, ima_measurement_list=text), challenge, known), Accepted)


# -- P4: a list in many rounds has the verdict of one round


@functools.cache
def values_after(name: str, stage: str) -> list[bytes]:
    return [bytes(32), *values_of(capture(name).stage(stage).ascii_list, SHA256)]


def watch_of(stage: Stage, *, tolerant: bool) -> Watch:
    one = SoftwareMachine(ak=AK)
    rules = policy_for(stage.capture, "s1-clean")
    return Watch(one, reference(AK.tpm2b_public, runtime_policy=rules, ignore_tomtou=tolerant))


@quickly
@given(st.sampled_from(stages()), st.booleans(), st.data())
def test_p4_a_list_in_several_rounds_has_the_verdict_of_one(
    stage: Stage, tolerant: bool, data: st.DataObject
) -> None:
    lines, values = split_lines(stage.ascii_list), values_after(stage.capture, stage.name)
    whole = watch_of(stage, tolerant=tolerant)
    whole.machine.pcrs[10], whole.machine.ima_list = values[-1], stage.ascii_list
    at_once = whole.round()

    watch = watch_of(stage, tolerant=tolerant)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(lines)), max_size=4)) | {len(lines)})
    verdict: Verdict | None = None
    for cut in cuts:
        # The list may be read after more was measured, but not beyond what the next quote covers.
        later = next((other for other in cuts if other > cut), len(lines))
        seen = data.draw(st.integers(cut, later))
        watch.memo = data.draw(st.sampled_from([watch.memo, AppraisalMemo()]))
        watch.machine.pcrs[10], watch.machine.ima_list = values[cut], b"\n".join(lines[:seen])
        verdict = watch.round()
        if not isinstance(verdict, Accepted):
            break
    if isinstance(at_once, Accepted):
        assert isinstance(verdict, Accepted)
        assert watch.checkpoint.ima.pcr == whole.checkpoint.ima.pcr
        assert watch.checkpoint.ima.next_entry == whole.checkpoint.ima.next_entry
    else:
        assert isinstance(verdict, Rejected)
        assert isinstance(at_once, Rejected)
        assert all(finding in at_once.findings for finding in verdict.findings)


# -- P5: the verdict is a function of its inputs


@quickly
@given(st.sampled_from(["nothing", *PARTS]), st.integers(0), st.booleans())
def test_p5_memory_and_storage_do_not_change_a_verdict(part: str, position: int, later: bool) -> None:
    reply, challenge, known = accepted_round()
    checkpoint = Checkpoint.fresh()
    if later:
        first = judge(reply, challenge, known)
        checkpoint = first.checkpoint
    if part != "nothing":
        parts = parts_of(reply)
        parts[part] = flip(parts[part], position % len(parts[part]), position % 8)
        reply = reply_of(reply, parts)
    stored = decode_checkpoint(encode_checkpoint(checkpoint))
    assert stored == checkpoint
    cold = judge(reply, challenge, known, checkpoint)
    warm_memo = warm()
    assert cold == judge(reply, challenge, known, stored)
    assert cold == appraise(reply, challenge, known, stored, warm_memo)
    assert cold == appraise(reply, challenge, known, stored, warm_memo)
    again = decode_checkpoint(encode_checkpoint(cold.checkpoint))
    assert again == cold.checkpoint


@functools.cache
def warm() -> AppraisalMemo:
    memo = AppraisalMemo()
    reply, challenge, known = accepted_round()
    appraise(reply, challenge, known, Checkpoint.fresh(), memo)
    return memo


# -- P8: any answer has a verdict, and no made-up one is accepted

TEXTS = st.one_of(
    st.text(max_size=200),
    st.sampled_from(["", "r", "r::", "sha256", "sha1", "sm3_256", "ecdsa", "ecc256", "rsa", "AAAA", "10 "]),
)
NUMBERS = st.one_of(st.integers(), st.integers(-1, 200))


@settings(quickly, max_examples=examples(300))
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "quote": TEXTS,
            "hash_alg": TEXTS,
            "enc_alg": TEXTS,
            "sign_alg": TEXTS,
            "pubkey": st.none() | TEXTS,
            "boottime": NUMBERS,
            "ima_measurement_list": st.none() | TEXTS,
            "ima_measurement_list_entry": NUMBERS,
            "mb_measurement_list": st.none() | TEXTS | st.binary(max_size=99).map(lambda b: b.hex()),
        },
    ),
    st.booleans(),
)
def test_p8_every_answer_has_a_verdict(fields: dict[str, Any], later: bool) -> None:
    reply, challenge, known = accepted_round()
    checkpoint = judge(reply, challenge, known).checkpoint if later else None
    changed = with_fields(reply, **fields)
    verdict = judge(changed, challenge, known, checkpoint)
    assert isinstance(verdict, Accepted | Rejected | Incomplete)
    if isinstance(verdict, Accepted):
        known_fields: dict[str, Any] = {"boottime": changed.boottime}
        if later and changed.pubkey is None:  # the key is known by then
            known_fields["pubkey"] = None
        assert changed == with_fields(reply, **known_fields)
    elif isinstance(verdict, Rejected):
        assert verdict.findings
        assert all(finding.explanation and finding.context_json for finding in verdict.findings)
    assert decode_checkpoint(encode_checkpoint(verdict.checkpoint)) == verdict.checkpoint


# -- P9: what is accepted has one spelling

EDITS = st.lists(st.tuples(st.integers(0), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3)


def edited(data: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    for position, new, cut in edits:
        at = position % (len(data) + 1)
        data = data[:at] + new + data[at + cut :]
    return data


@quickly
@given(st.sampled_from(AK_LABELS), EDITS)
def test_p9_a_quote_that_parses_has_one_spelling(ak: str, edits: list[tuple[int, bytes, int]]) -> None:
    captured = SMALL.quote(ak, "sha256")
    assert encode_pcr_blob(parse_quote(captured.text).pcrs) == captured.pcr_blob
    text = edited(captured.text.encode(), edits).decode("latin-1")
    try:
        quote = parse_quote(text)
    except MalformedEvidence:
        return
    signature, blob = (base64.b64decode(part) for part in text.split(":")[1:])
    assert encode_quote(quote.attest_bytes, signature, blob) == text
    assert encode_pcr_blob(quote.pcrs) == blob


@quickly
@given(st.sampled_from(["sha1", "sha256", "sha384", "sha512"]), EDITS)
def test_p9_a_pcr_blob_that_parses_has_one_spelling(bank: str, edits: list[tuple[int, bytes, int]]) -> None:
    good = capture("direct-critical-data-4banks").stage("s1-clean").quote("ecdsa", bank).pcr_blob
    for data in (good, edited(good, edits)):
        try:
            assert encode_pcr_blob(parse_pcr_blob(data)) == data
        except MalformedEvidence:
            assert data != good


@quickly
@given(st.sampled_from(stages()), st.integers(0), EDITS)
def test_p9_an_entry_that_parses_has_one_spelling(
    stage: Stage, index: int, edits: list[tuple[int, bytes, int]]
) -> None:
    lines = split_lines(stage.ascii_list)
    good = lines[index % len(lines)]
    assert parse_line(good).to_line() == good
    changed = edited(good, edits)
    with contextlib.suppress(MalformedEvidence):
        entry = parse_line(changed)
        assert parse_line(entry.to_line()) == entry
        assert is_spelling(changed, entry)


@quickly
@given(st.sampled_from(stages()), st.integers(0, 2000), EDITS)
def test_p9_a_binary_list_that_parses_has_one_spelling(
    stage: Stage, size: int, edits: list[tuple[int, bytes, int]]
) -> None:
    whole = stage.binary_list
    assert b"".join(entry.to_record() for entry in parse_binary_list(whole)) == whole
    changed = edited(whole[:size], edits)
    with contextlib.suppress(MalformedEvidence):
        assert b"".join(entry.to_record() for entry in parse_binary_list(changed)) == changed


def test_p9_a_captured_boot_log_is_read_to_its_last_byte() -> None:
    log = capture("grub-secureboot").boot_log
    assert build_log(take_apart(log))[-200:] == log[-200:]
    events = parse_event_log(log).events[1:]
    records = take_apart(log)
    assert [(e.pcr, e.type_code, dict(e.digests), e.data) for e in events] == [
        (r.pcr, r.type_code, dict(r.digests), r.data) for r in records
    ]


@quickly
@given(EDITS)
def test_p9_a_public_area_that_parses_is_named_by_all_its_bytes(edits: list[tuple[int, bytes, int]]) -> None:
    good = capture("direct-efistub").ak_public("ecdsa")
    name = parse_attestation_key(good).name
    changed = edited(good, edits)
    try:
        key = parse_attestation_key(changed)
    except KeylimeError:
        return
    assert (key.name == name) is (changed == good)


# -- P10: the order of a policy and how it was put together do not matter


@quickly
@given(st.randoms(use_true_random=False), st.sampled_from(stages()))
def test_p10_order_merge_and_spelling_of_a_policy_do_not_matter(shuffler: Any, stage: Stage) -> None:
    clean = policy_for(stage.capture, "s1-clean")
    document = clean.to_document()
    names = list(document["digests"])
    shuffler.shuffle(names)
    half = shuffler.randrange(len(names) + 1)

    def with_names(chosen: list[str]) -> Any:
        digests = {name: document["digests"][name][::-1] for name in chosen}
        return parse_runtime_policy(json.dumps({**document, "digests": digests}, indent=1))

    ak = capture(stage.capture).ak_public("ecdsa")
    known = reference(ak, runtime_policy=clean, measured_boot=boot_policy())
    reply = captured_reply(stage, "ecdsa", "sha256")

    def verdict_under(rules: Any) -> Verdict:
        held_to = replace(known, runtime_policy=rules)
        return judge(reply, captured_challenge(stage, held_to), held_to)

    expected = verdict_under(clean)
    shuffled = with_names(names)
    merged = merge(with_names(names[:half]), with_names(names[half:]))
    assert shuffled.content_hash == clean.content_hash
    for rules in (shuffled, merged, parse_runtime_policy(merged.to_json())):
        assert verdict_under(rules) == expected


def test_the_machine_with_grub_is_the_captured_one() -> None:
    assert grub_pcrs() == CLEAN.pcrs("sha256")
