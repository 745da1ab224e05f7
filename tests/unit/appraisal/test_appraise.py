"""Whole appraisals, through the public entry point."""

import json
from dataclasses import replace
from typing import Any

import pytest

from keylime.appraisal.appraise import appraise
from keylime.appraisal.challenge import Challenge, make_challenge
from keylime.appraisal.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from keylime.appraisal.memo import AppraisalMemo
from keylime.appraisal.reference import Reference
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected, Verdict
from keylime.findings.finding import JsonValue
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import split_lines
from keylime.ima.runtime_policy import EMPTY_POLICY, parse_runtime_policy
from keylime.measured_boot.boot_policy import built_in_policies, compile_measured_boot_policy
from keylime.measured_boot.policies import BootPolicy
from keylime.measured_boot.replay import parse_boot_log
from keylime.measured_boot.rules import AcceptAll, RejectAll, Test
from keylime.messages.agent import QuoteReply
from keylime.nonce import new_nonce
from keylime.tpm.pcr import data_pcr_value
from keylime.tpm.tpm_policy import TpmPolicy
from tests.appraisal_rounds import NOT_LISTED, Watch
from tests.captures import AK_LABELS, Capture, Stage, capture, captures, stages
from tests.evidence import (
    SoftwareMachine,
    boot_policy,
    captured_challenge,
    captured_reply,
    policy_of,
    reference,
)
from tests.ima_rounds import Kernel, line_of

CLEAN = capture("direct-efistub").stage("s1-clean")
TAMPERED = capture("direct-efistub").stage("s2-tampered")


def events(verdict: Verdict) -> list[str]:
    assert isinstance(verdict, Rejected), verdict
    return [finding.event_id for finding in verdict.findings]


def known_good(stage: Stage, ak: str, *policies: Stage) -> Reference:
    """Measured boot, and a runtime policy made of the lists of `policies`."""
    return reference(
        capture(stage.capture).ak_public(ak),
        measured_boot=boot_policy(),
        runtime_policy=policy_of(one.ascii_list for one in (policies or (stage,))),
        ignore_tomtou=True,
    )


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_every_capture_is_accepted_by_a_policy_made_of_its_own_list(stage: Stage) -> None:
    for ak in AK_LABELS:
        known = known_good(stage, ak)
        for bank in stage.banks:
            reply = captured_reply(stage, ak, bank)
            verdict = appraise(reply, captured_challenge(stage, known), known, Checkpoint.fresh())
            assert isinstance(verdict, Accepted), (ak, bank, verdict)
            assert verdict.quote.ima_entries == stage.entries


@pytest.mark.parametrize("one", captures(), ids=lambda one: one.name)
def test_the_tampered_stage_names_exactly_the_tampered_paths(one: Capture) -> None:
    clean, tampered = (one.stage(name) for name in ("s1-clean", "s2-tampered"))
    known = known_good(tampered, "ecdsa", clean)
    reply = captured_reply(tampered, "ecdsa", "sha256")
    verdict = appraise(reply, captured_challenge(tampered, known), known, Checkpoint.fresh())
    assert isinstance(verdict, Rejected)
    allowed = known.runtime_policy.digests
    added = split_lines(tampered.ascii_list)[clean.entries :]
    paths = {line.split(b" ")[4].decode() for line in added}
    changed = {path for path in paths if path == "/usr/local/bin/hello.sh" or path not in allowed}
    assert {finding.path for finding in verdict.findings} == changed
    assert "/usr/local/bin/hello.sh" in changed
    assert "/usr/local/bin/dropped-in" in changed


def fresh_round(
    machine: SoftwareMachine, known: Reference, checkpoint: Checkpoint | None = None, **lies: object
) -> tuple[Challenge, QuoteReply, Verdict]:
    before = checkpoint or Checkpoint.fresh()
    challenge = make_challenge(known, before, new_nonce(), renew_key=False)
    reply = machine.answer(challenge, **lies)
    return challenge, reply, appraise(reply, challenge, known, before)


@pytest.fixture
def machine() -> SoftwareMachine:
    return SoftwareMachine.of_stage(CLEAN)


@pytest.fixture
def known(machine: SoftwareMachine) -> Reference:
    return reference(
        machine.ak.tpm2b_public,
        measured_boot=boot_policy(),
        runtime_policy=policy_of([CLEAN.ascii_list]),
    )


def accepted(machine: SoftwareMachine, known: Reference, checkpoint: Checkpoint | None = None) -> Checkpoint:
    _, _, verdict = fresh_round(machine, known, checkpoint)
    assert isinstance(verdict, Accepted), verdict
    return verdict.checkpoint


def test_the_next_round_goes_on_from_the_checkpoint(machine: SoftwareMachine, known: Reference) -> None:
    checkpoint = decode_checkpoint(encode_checkpoint(accepted(machine, known)))
    challenge, reply, verdict = fresh_round(machine, known, checkpoint)
    assert challenge.ima_entry == CLEAN.entries
    assert not challenge.wants_public_key
    assert reply.ima_measurement_list == ""
    assert isinstance(verdict, Accepted)


def test_a_bad_file_in_a_later_round_is_found(machine: SoftwareMachine, known: Reference) -> None:
    checkpoint = accepted(machine, known)
    machine.ima_list, machine.pcrs = TAMPERED.ascii_list, dict(TAMPERED.pcrs("sha256"))
    _, _, verdict = fresh_round(machine, known, checkpoint)
    assert isinstance(verdict, Rejected)
    assert verdict.recoverable
    assert verdict.checkpoint.ima.next_entry == 0, "the next appraisal starts from entry 0"
    hello = next(f for f in verdict.findings if f.path == "/usr/local/bin/hello.sh")
    assert hello.event_id == "ima.validation.ima-ng.runtime_policy_hash"
    assert hello.log_index is not None
    assert hello.log_index >= CLEAN.entries


def test_the_verdict_does_not_depend_on_what_is_remembered(
    machine: SoftwareMachine, known: Reference
) -> None:
    memo = AppraisalMemo()
    challenge = make_challenge(known, Checkpoint.fresh(), new_nonce(), renew_key=True)
    reply = machine.answer(challenge)
    verdicts = [appraise(reply, challenge, known, Checkpoint.fresh(), memo) for _ in range(3)]
    assert verdicts[0] == verdicts[1] == verdicts[2] == appraise(reply, challenge, known, Checkpoint.fresh())


def test_a_reboot_demands_the_whole_list_and_is_then_accepted(
    machine: SoftwareMachine, known: Reference
) -> None:
    checkpoint = accepted(machine, known)
    machine.reset_count += 1
    _, _, verdict = fresh_round(machine, known, checkpoint)
    assert isinstance(verdict, Incomplete)
    challenge, _, verdict = fresh_round(machine, known, verdict.checkpoint)
    assert challenge.ima_entry == 0
    assert isinstance(verdict, Accepted)
    assert verdict.checkpoint.reboots == 1
    assert verdict.checkpoint.incomplete_rounds == 0


def test_a_changed_boot_time_gives_no_verdict_and_twice_in_a_row_a_failure(
    machine: SoftwareMachine, known: Reference
) -> None:
    checkpoint = accepted(machine, known)
    _, _, verdict = fresh_round(machine, known, checkpoint, boottime=99)
    assert isinstance(verdict, Incomplete)
    again = replace_ima(verdict.checkpoint, checkpoint)
    _, _, verdict = fresh_round(machine, known, again, boottime=98)
    assert events(verdict) == ["qoute_validation.quote_validation"]


def replace_ima(counted: Checkpoint, partial: Checkpoint) -> Checkpoint:
    """A checkpoint that has counted one round without verdict but would still go on from an offset."""
    fields = {name: getattr(counted, name) for name in counted.__struct_fields__}
    return Checkpoint(**{**fields, "ima": partial.ima})


def test_a_list_cut_short_gives_one_more_try_and_then_a_failure(
    machine: SoftwareMachine, known: Reference
) -> None:
    machine.ima_list = machine.ima_list[: machine.ima_list.rindex(b"\n", 0, -1) + 1]
    _, _, verdict = fresh_round(machine, known)
    assert isinstance(verdict, Incomplete)
    _, _, verdict = fresh_round(machine, known, verdict.checkpoint)
    assert events(verdict) == ["ima.pcr_mismatch"]


def test_a_list_ahead_of_the_quote_is_accepted_up_to_it(machine: SoftwareMachine, known: Reference) -> None:
    machine.ima_list = TAMPERED.ascii_list
    checkpoint = accepted(machine, known)
    assert checkpoint.ima.next_entry == CLEAN.entries


@pytest.mark.parametrize(
    ("lies", "event"),
    [
        ({"ima_measurement_list": None}, "pcr_validation.unused_pcr_10"),
        ({"mb_measurement_list": None}, "pcr_validation.unused_pcr_0"),
        ({"mb_measurement_list": "AAAA\n"}, "measured_boot.parser.log.base64decode"),
        ({"mb_measurement_list": "AAAA"}, "measured_boot.parser.tpm2_eventlog.error"),
        ({"quote": "r:::"}, "qoute_validation.quote_validation"),
        ({"hash_alg": "md5"}, "qoute_validation.invalid_hash_alg"),
        ({"hash_alg": "sha1"}, "qoute_validation.quote_validation"),
        ({"enc_alg": "rsa2048"}, "qoute_validation.invalid_enc_alg"),
        ({"sign_alg": "rsassa"}, "qoute_validation.invalid_sign_alg"),
        ({"pubkey": "another key"}, "pcr_validation.invalid_pcr_16"),
        ({"pubkey": None}, "qoute_validation.no_pubkey"),
        ({"ima_measurement_list_entry": 7}, "qoute_validation.invalid_ima_entry_nb"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_a_finding(
    machine: SoftwareMachine, known: Reference, lies: dict[str, Any], event: str
) -> None:
    _, _, verdict = fresh_round(machine, known, **lies)
    assert event in events(verdict)


def test_an_agent_without_policies_only_proves_its_key(machine: SoftwareMachine) -> None:
    known = reference(machine.ak.tpm2b_public)
    challenge, _, verdict = fresh_round(machine, known)
    assert challenge.query["mask"] == "0x0"
    assert challenge.pcrs == {16}
    assert isinstance(verdict, Accepted)
    assert any("ignored" in note for note in verdict.notes), "a boot log nobody asked for is ignored aloud"


def test_the_tpm_policy_judges_what_no_log_explains(machine: SoftwareMachine, known: Reference) -> None:
    wanted = replace(known, tpm_policy=TpmPolicy.from_operator('{"23": "00", "22": []}'))
    challenge, _, verdict = fresh_round(machine, wanted)
    assert {22, 23} <= challenge.pcrs
    assert events(verdict) == ["pcr_validation.invalid_pcr_22", "pcr_validation.invalid_pcr_23"]


def test_the_mask_follows_from_the_policies_whatever_the_tenant_sent(
    machine: SoftwareMachine, known: Reference
) -> None:
    challenge = make_challenge(known, Checkpoint.fresh(), new_nonce(), renew_key=False)
    assert challenge.query["mask"] == "0xffff"
    narrower = Challenge(challenge.nonce, frozenset({16}), 0, wants_public_key=True)
    with pytest.raises(ValueError, match="less than the policies demand"):
        appraise(machine.answer(narrower), narrower, known, Checkpoint.fresh())


def test_a_firmware_change_and_an_unsafe_clock_are_noted(machine: SoftwareMachine, known: Reference) -> None:
    checkpoint = accepted(machine, known)
    changed = Checkpoint(
        **{**{n: getattr(checkpoint, n) for n in checkpoint.__struct_fields__}, "firmware_version": 1}
    )
    _, _, verdict = fresh_round(machine, known, changed)
    assert isinstance(verdict, Accepted)
    assert any("firmware" in note for note in verdict.notes)


def test_the_content_of_a_boot_log_is_judged_once_and_again_when_the_policy_changes(
    machine: SoftwareMachine, known: Reference
) -> None:
    checkpoint = accepted(machine, replace(known, measured_boot=boot_policy('{"a": 1}')))
    rejecting = replace(known, measured_boot=boot_policy('{"a": 1}', "reject-all"))
    _, _, verdict = fresh_round(machine, rejecting, checkpoint)
    assert events(verdict) == ["measured_boot.policy_reject-all"]


def test_an_agent_without_ima_is_not_asked_for_its_whole_list_after_a_reboot(
    machine: SoftwareMachine,
) -> None:
    watch = Watch(machine, reference(machine.ak.tpm2b_public))
    watch.accept()
    machine.reset_count += 1
    assert isinstance(watch.round(ima_measurement_list="", ima_measurement_list_entry=7), Accepted)


def pinned(index: int, value: bytes) -> TpmPolicy:
    return TpmPolicy.from_wire(json.dumps({str(index): [value.hex()]}))


@pytest.mark.parametrize("index", [*range(16), 16])
def test_a_pinned_pcr_is_compared_also_where_a_log_or_a_key_explains_it(
    machine: SoftwareMachine, known: Reference, index: int
) -> None:
    """The log says how the value came about, the pin which one it must be."""
    values = {**machine.pcrs, 16: data_pcr_value(machine.bank, machine.public_key)}
    Watch(machine, replace(known, tpm_policy=pinned(index, values[index]))).accept()
    wrong = replace(known, tpm_policy=pinned(index, b"\x01" * 32))
    watch = Watch(machine, wrong)
    for _ in range(2):
        assert events(watch.round()) == [f"pcr_validation.invalid_pcr_{index}"]


def test_a_pinned_pcr_10_holds_until_the_machine_measures_something_new(
    machine: SoftwareMachine, known: Reference
) -> None:
    watch = Watch(machine, replace(known, measured_boot=None, tpm_policy=pinned(10, machine.pcrs[10])))
    watch.accept()
    watch.accept()
    kernel = Kernel()
    kernel.pcr = machine.pcrs[10]
    line = split_lines(CLEAN.ascii_list)[-1]
    kernel.add(line)
    machine.pcrs[10], machine.ima_list = kernel.pcr, CLEAN.ascii_list + line + b"\n"
    assert events(watch.round()) == ["pcr_validation.invalid_pcr_10"]


def test_an_honest_machine_gives_nothing_to_note(machine: SoftwareMachine, known: Reference) -> None:
    watch = Watch(machine, known)
    for _ in range(2):
        verdict = watch.accept()
        assert verdict.notes == ()
        assert verdict.checkpoint.reboots == 0
    machine.boot_log = None
    assert Watch(machine, reference(machine.ak.tpm2b_public)).accept().notes == ()


def test_a_clock_that_is_not_safe_is_noted(machine: SoftwareMachine, known: Reference) -> None:
    verdict = Watch(machine, known).forge(safe=0)
    assert isinstance(verdict, Accepted)
    assert ["clock is not safe" in note for note in verdict.notes] == [True]


def test_a_machine_that_rebooted_owes_nothing_of_the_list_before() -> None:
    machine = SoftwareMachine()
    known = reference(machine.ak.tpm2b_public, runtime_policy=policy_of([CLEAN.ascii_list]))
    watch = Watch(machine, known)

    def start(lines: int) -> None:
        """The machine has measured so many lines, and one more before the list was read."""
        kernel = Kernel()
        for line in split_lines(CLEAN.ascii_list)[:lines]:
            kernel.add(line)
        machine.pcrs[10], machine.ima_list = kernel.pcr, CLEAN.ascii_list

    start(30)
    assert watch.accept().checkpoint.ima.lag > 0
    machine.reset_count += 1
    start(3)
    everything = {"ima_measurement_list": machine.ima_list.decode(), "ima_measurement_list_entry": 0}
    verdict = watch.round(**everything)
    assert isinstance(verdict, Accepted)
    assert (verdict.quote.ima_entries, verdict.checkpoint.reboots) == (3, 1)


def test_a_list_that_is_missing_after_a_reboot_is_a_finding_at_once(
    machine: SoftwareMachine, known: Reference
) -> None:
    watch = Watch(machine, known)
    watch.accept()
    machine.reset_count += 1
    verdict = watch.round(ima_measurement_list=None, ima_measurement_list_entry=7)
    assert events(verdict) == ["pcr_validation.unused_pcr_10"]


def test_findings_that_are_too_many_to_keep_are_counted() -> None:
    machine, kernel = SoftwareMachine(), Kernel()
    kernel.add(split_lines(CLEAN.ascii_list)[0])
    for number in range(1500):
        kernel.run(f"/evil-{number}", "x")
    machine.pcrs[10], machine.ima_list = kernel.pcr, kernel.text()
    watch = Watch(machine, reference(machine.ak.tpm2b_public, runtime_policy=policy_of([CLEAN.ascii_list])))
    verdict = watch.round(pubkey="another key")
    assert isinstance(verdict, Rejected)
    assert (len(verdict.findings), verdict.omitted) == (1001, 500)


class Fickle(BootPolicy):
    """An operator's policy that looks at more than the log: it accepts only the first time."""

    def __init__(self) -> None:
        self.asked = 0

    def get_relevant_pcrs(self) -> frozenset[int]:
        return frozenset()

    def refstate_to_test(self, refstate: JsonValue) -> Test:
        return AcceptAll()

    def evaluate(self, refstate: JsonValue, eventlog: JsonValue) -> str:
        self.asked += 1
        return "" if self.asked == 1 else RejectAll("no more").why_not({}, eventlog)


@pytest.mark.parametrize("always", [False, True])
def test_a_boot_log_that_stays_is_judged_once_unless_the_operator_wants_it_always(
    machine: SoftwareMachine, known: Reference, always: bool
) -> None:
    registry = built_in_policies()
    registry.register("fickle", Fickle())
    rules = compile_measured_boot_policy('{"a": 1}', policy_name="fickle", registry=registry)
    watch = Watch(machine, replace(known, measured_boot=rules, evaluate_boot_always=always))
    watch.accept()
    if always:
        assert events(watch.round()) == ["measured_boot.policy_fickle"]
    else:
        watch.accept()


def test_a_boot_log_that_does_not_fit_the_quote_lends_no_boot_aggregate(machine: SoftwareMachine) -> None:
    forged = capture("grub-secureboot").boot_log
    log = parse_boot_log(forged)
    sha1 = next(iter(log.boot_aggregates[HashAlgorithm.SHA1]))  # type: ignore[union-attr]
    kernel = Kernel()
    kernel.add(line_of("ima-ng", f"sha1:{sha1} boot_aggregate"))
    machine.pcrs[10], machine.ima_list, machine.boot_log = kernel.pcr, kernel.text(), forged
    rules = parse_runtime_policy(EMPTY_POLICY.replace('"generator": 1', '"generator": 3'))
    known = reference(machine.ak.tpm2b_public, measured_boot=boot_policy(), runtime_policy=rules)
    found = events(Watch(machine, known).round())
    assert "measured_boot.invalid_pcr_0" in found
    assert NOT_LISTED in found


def test_what_an_appraisal_learns_goes_into_the_memo_that_it_was_given(
    machine: SoftwareMachine, known: Reference
) -> None:
    memo = AppraisalMemo()
    Watch(machine, known, memo=memo).accept()
    assert len(memo.ima) > 0
    assert machine.boot_log is not None
    assert memo.boot_log_bytes == len(machine.boot_log)
