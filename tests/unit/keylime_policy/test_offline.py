"""Judging captures: the same verdict with a quote as a verifier's, and what the logs alone can tell."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from keylime.appraisal.appraise import appraise
from keylime.appraisal.challenge import Challenge
from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.verdict import Rejected
from keylime.hashes import HashAlgorithm
from keylime.ima.keyrings import Keyring, keyring_of
from keylime.ima.measurement_list import split_lines
from keylime.ima.runtime_policy import EMPTY_POLICY, parse_runtime_policy
from keylime.measured_boot.boot_policy import built_in_policies, compile_measured_boot_policy
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.pcr_sets import PcrSet
from keylime.measured_boot.reference_state import create_reference_state
from keylime.tpm.keys import parse_attestation_key
from keylime.tpm.quote import parse_quote
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_policy.measured import ascii_list
from keylime_policy.offline import Approval, Conclusion, OfflineJudgement, StoredEvidence, judge
from keylime_policy.quote_files import load_quote
from keylime_policy.stored_quote import StoredQuote
from tests.captures import AK_LABELS, IMA_KEYS_DIRECTORY, Capture, Stage, capture, captures, stages
from tests.evidence import (
    SoftwareMachine,
    boot_policy,
    captured_challenge,
    captured_reply,
    policy_of,
    reference,
)
from tests.fakes.event_logs import header
from tests.os_logs import SHA256, SYSTEMD_262, UNIFIED, firmware_log, held, os_log

CLEAN = capture("grub-secureboot").stage("s1-clean")
TAMPERED = capture("grub-secureboot").stage("s2-tampered")
VIOLATIONS = capture("grub-secureboot").stage("s3-violations")


def quote_of(stage: Stage, ak: str = "ecdsa", bank: str = "sha256") -> StoredQuote:
    prefix = stage.path / f"quote_{ak}_{bank}"
    return load_quote(str(prefix), str(stage.path.parent / f"ak_{ak}.tpm2b_public"), stage.nonce)


def evidence_of(stage: Stage, quote: StoredQuote | None = None) -> StoredEvidence:
    return StoredEvidence(ima_list=stage.ascii_list, boot_log=capture(stage.capture).boot_log, quote=quote)


def events(judgement: OfflineJudgement) -> set[str]:
    return {finding.event_id for finding in judgement.findings}


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_every_capture_is_accepted_by_its_own_policy(stage: Stage) -> None:
    approval = Approval(runtime_policy=policy_of([stage.ascii_list]), ignore_tomtou=True)
    assert judge(evidence_of(stage), approval).outcome is Conclusion.ACCEPTED
    for ak in AK_LABELS:
        for bank in stage.banks:
            judgement = judge(evidence_of(stage, quote_of(stage, ak, bank)), approval)
            assert judgement.outcome is Conclusion.ACCEPTED, (ak, bank, judgement)
            assert judgement.ima is not None
            assert (judgement.ima.entries, judgement.ima.violations) == (stage.entries, stage.violations)
            algorithm = HashAlgorithm.from_label(bank)
            assert judgement.ima.pcr10[algorithm] == stage.pcrs(bank)[10]
            assert judgement.boot is not None
            for index in {*range(10), 14}:
                assert judgement.boot.pcrs[algorithm][index] == stage.pcrs(bank)[index]


@pytest.mark.parametrize("one", captures(), ids=lambda one: one.name)
@pytest.mark.parametrize("has_quote", [True, False], ids=["quote", "logs alone"])
def test_a_tampered_machine_gets_the_findings_of_a_verifier(one: Capture, has_quote: bool) -> None:
    clean, tampered = one.stage("s1-clean"), one.stage("s2-tampered")
    policy = policy_of([clean.ascii_list])
    known = reference(one.ak_public("ecdsa"), runtime_policy=policy, measured_boot=boot_policy())
    challenge = captured_challenge(tampered, known)
    verdict = appraise(captured_reply(tampered, "ecdsa", "sha256"), challenge, known, Checkpoint.fresh())
    assert isinstance(verdict, Rejected)
    quote = quote_of(tampered) if has_quote else None
    judgement = judge(evidence_of(tampered, quote), Approval(runtime_policy=policy))
    assert judgement.outcome is Conclusion.REJECTED
    assert judgement.findings == verdict.findings
    allowed = {line.split(b" ")[4] for line in split_lines(clean.ascii_list)}
    added = {line.split(b" ")[4] for line in split_lines(tampered.ascii_list)[clean.entries :]}
    expected = {path for path in added if path not in allowed} | {b"/usr/local/bin/hello.sh"}
    assert {(finding.path or "").encode() for finding in judgement.findings} == expected


@pytest.mark.parametrize("stage", [CLEAN, TAMPERED, VIOLATIONS], ids=lambda stage: stage.name)
def test_the_binary_list_is_judged_like_the_ascii_list(stage: Stage) -> None:
    approval = Approval(runtime_policy=policy_of([CLEAN.ascii_list]))
    plain = evidence_of(stage, quote_of(stage))
    binary = replace(plain, ima_list=ascii_list(stage.binary_list))
    assert judge(plain, approval) == judge(binary, approval)


def test_violations_are_failures_unless_they_are_ignored() -> None:
    policy = policy_of([VIOLATIONS.ascii_list])
    for quote in (None, quote_of(VIOLATIONS)):
        judgement = judge(evidence_of(VIOLATIONS, quote), Approval(runtime_policy=policy))
        assert [finding.event_id for finding in judgement.findings] == ["ima.validation.tomtou"] * 2
        ignored = Approval(runtime_policy=policy, ignore_tomtou=True)
        assert judge(evidence_of(VIOLATIONS, quote), ignored).outcome is Conclusion.ACCEPTED


def test_signed_files_are_accepted_with_their_keys_and_not_without() -> None:
    document = policy_of([CLEAN.ascii_list]).to_document()
    document["digests"] = {
        name: digests for name, digests in document["digests"].items() if "/signed-" not in name
    }
    policy = parse_runtime_policy(json.dumps(document))
    keyring = keyring_of(
        (IMA_KEYS_DIRECTORY / name).read_bytes() for name in ("ima-rsa.crt.der", "ima-ec.crt.pem")
    )
    without = judge(evidence_of(CLEAN), Approval(runtime_policy=policy, keyring=Keyring())).findings
    with_keys = judge(evidence_of(CLEAN), Approval(runtime_policy=policy, keyring=keyring)).findings
    assert len(without) > len(with_keys)
    assert {(finding.path or "").rpartition("/")[2] for finding in with_keys} == {"signed-stale.sh"}


def test_a_list_without_a_policy_must_still_reach_the_quoted_pcr() -> None:
    judgement = judge(evidence_of(TAMPERED, quote_of(TAMPERED)), Approval())
    assert judgement.outcome is Conclusion.ACCEPTED
    assert any("no runtime policy" in text for text in judgement.not_checked)
    shortened = replace(evidence_of(TAMPERED, quote_of(TAMPERED)), ima_list=CLEAN.ascii_list)
    judgement = judge(shortened, Approval())
    assert judgement.outcome is Conclusion.INCOMPLETE
    assert judgement.reason is not None
    assert "PCR 10" in judgement.reason


@pytest.mark.parametrize(
    ("evidence", "event"),
    [
        (StoredEvidence(ima_list=b""), "ima.nothing_measured"),
        (StoredEvidence(ima_list=b"\n"), "ima.nothing_measured"),
        (StoredEvidence(ima_list=CLEAN.ascii_list.partition(b"\n")[2]), "ima.missing_boot_aggregate"),
        (StoredEvidence(boot_log=b""), "pcr_validation.unused_pcr_0"),
        (StoredEvidence(boot_log=header()), "measured_boot.no_boot"),
    ],
)
@pytest.mark.parametrize("has_policy", [True, False])
def test_logs_that_show_nothing_are_no_good_logs(
    evidence: StoredEvidence, event: str, has_policy: bool
) -> None:
    rules = policy_of([CLEAN.ascii_list]) if has_policy else None
    judgement = judge(evidence, Approval(runtime_policy=rules))
    assert (judgement.outcome, judgement.findings[0].event_id) == (Conclusion.REJECTED, event)


def test_without_policy_and_boot_log_the_boot_aggregate_is_what_the_list_says() -> None:
    """Some operating systems extend the boot PCRs after the kernel has hashed them."""
    machine = SoftwareMachine.of_stage(CLEAN)
    machine.pcrs[7] = HashAlgorithm.SHA256.digest(machine.pcrs[7] + bytes(32))
    known = reference(machine.ak.tpm2b_public)
    text = machine.answer(captured_challenge(CLEAN, known)).quote
    quote = replace(quote_of(CLEAN), text=text, content=parse_quote(text), key=known.attestation_key)
    evidence = StoredEvidence(ima_list=CLEAN.ascii_list, quote=quote)
    assert judge(evidence, Approval()).outcome is Conclusion.ACCEPTED
    rest = CLEAN.ascii_list.partition(b"\n")[2]
    assert judge(evidence, Approval(runtime_policy=policy_of([rest], excludes=[".*"]))).findings == ()
    unlisted = Approval(runtime_policy=policy_of([rest]))
    assert events(judge(evidence, unlisted)) == {"ima.validation.ima-ng.not_in_allowlist"}


def test_the_boot_aggregate_is_judged_without_a_policy_where_a_boot_log_tells_it() -> None:
    other = capture("direct-efistub").stage("s1-clean")
    mixed = StoredEvidence(ima_list=other.ascii_list, boot_log=capture("grub-secureboot").boot_log)
    assert {finding.path for finding in judge(mixed, Approval()).findings} == {"boot_aggregate"}
    assert judge(replace(mixed, boot_log=None), Approval()).outcome is Conclusion.ACCEPTED


def test_entries_after_the_quote_are_named_as_not_checked() -> None:
    evidence = replace(evidence_of(CLEAN, quote_of(CLEAN)), ima_list=TAMPERED.ascii_list)
    judgement = judge(evidence, Approval(runtime_policy=policy_of([CLEAN.ascii_list])))
    assert judgement.outcome is Conclusion.ACCEPTED
    more = TAMPERED.entries - CLEAN.entries
    assert any(text.startswith(f"the last {more} entries") for text in judgement.not_checked)


@pytest.mark.parametrize(
    ("damage", "event"),
    [
        (lambda text: text.replace(b"/usr/local/bin/hello.sh", b"/usr/local/bin/hell0.sh"), "ima_hash"),
        (lambda text: text + b"garbage\n", "parser.entry"),
        (lambda text: b"garbage\n" + text, "parser.entry"),
        (lambda text: text + b"10 00 ima-new x\n", "parser.entry"),
    ],
)
def test_lists_that_no_kernel_wrote_are_rejected_without_a_quote(damage: object, event: str) -> None:
    damaged = replace(evidence_of(CLEAN), ima_list=damage(CLEAN.ascii_list))  # type: ignore[operator]
    judgement = judge(damaged, Approval(runtime_policy=policy_of([CLEAN.ascii_list])))
    assert any(finding.endswith(event) for finding in events(judgement))


def test_the_bank_asked_for_must_be_the_quoted_one() -> None:
    evidence = evidence_of(CLEAN, quote_of(CLEAN, "rsassa", "sha1"))
    assert judge(replace(evidence, bank=HashAlgorithm.SHA1), Approval()).outcome is Conclusion.ACCEPTED
    judgement = judge(replace(evidence, bank=HashAlgorithm.SHA256), Approval())
    assert events(judgement) == {"qoute_validation.quote_validation"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda quote: replace(quote, nonce="another"),
        lambda quote: replace(quote, key=quote_of(capture("direct-efistub").stage("s1-clean")).key),
        lambda quote: replace(quote, text="r:::", content=None),
    ],
)
def test_a_quote_of_another_nonce_or_key_is_rejected(damage: object) -> None:
    quote = damage(quote_of(CLEAN))  # type: ignore[operator]
    assert events(judge(evidence_of(CLEAN, quote), Approval())) == {"qoute_validation.quote_validation"}


def test_a_boot_log_that_the_quote_does_not_reach_is_left_alone() -> None:
    machine = SoftwareMachine.of_stage(CLEAN, "sha1")
    reply = machine.answer(Challenge("n", frozenset({10}), 0, wants_public_key=False, binds_key=False))
    key = parse_attestation_key(machine.ak.tpm2b_public)
    content = parse_quote(reply.quote)
    quote = StoredQuote(text=reply.quote, content=content, key=key, has_attributes=True, nonce="n")
    judgement = judge(evidence_of(CLEAN, quote), Approval())
    assert judgement.outcome is Conclusion.ACCEPTED
    assert any("does not cover PCR 0 to 9" in text for text in judgement.not_checked)


def test_a_boot_log_of_another_machine_does_not_explain_the_quote() -> None:
    evidence = replace(evidence_of(CLEAN, quote_of(CLEAN)), boot_log=capture("direct-efistub").boot_log)
    assert any(
        event.startswith("measured_boot.invalid_pcr_") for event in events(judge(evidence, Approval()))
    )


def test_the_content_of_a_boot_log_is_judged_with_and_without_a_quote() -> None:
    state = create_reference_state(parse_event_log(capture("grub-secureboot").boot_log))
    good = boot_policy(json.dumps(state), "example")
    kernels = [{**kernel, "kernel_cmdline": "nothing"} for kernel in state["kernels"]]  # type: ignore[union-attr,dict-item]
    bad = boot_policy(json.dumps({**state, "kernels": kernels}), "example")
    for quote in (None, quote_of(CLEAN)):
        evidence = evidence_of(CLEAN, quote)
        assert judge(evidence, Approval(measured_boot=good)).outcome is Conclusion.ACCEPTED
        assert events(judge(evidence, Approval(measured_boot=bad))) == {"measured_boot.policy_example"}


def test_an_unreadable_boot_log_is_one_finding() -> None:
    evidence = StoredEvidence(boot_log=b"not a log")
    assert events(judge(evidence, Approval())) == {"measured_boot.parser.tpm2_eventlog.error"}


def test_a_bank_that_the_boot_log_lacks_is_a_finding() -> None:
    evidence = replace(evidence_of(CLEAN), ima_list=None, bank=HashAlgorithm.SHA384)
    assert events(judge(evidence, Approval())) == {"measured_boot.parser.invalid_pcrs_hashes"}


def test_missing_logs_fail_where_policies_demand_them() -> None:
    evidence = StoredEvidence(quote=quote_of(CLEAN))
    approval = Approval(runtime_policy=policy_of([CLEAN.ascii_list]), measured_boot=boot_policy())
    assert {"pcr_validation.unused_pcr_10", "pcr_validation.unused_pcr_0"} <= events(
        judge(evidence, approval)
    )


def test_the_tpm_policy_is_held_to_the_quote() -> None:
    evidence = StoredEvidence(quote=quote_of(CLEAN))
    right = CLEAN.pcrs("sha256")[7].hex()
    for value, outcome in ((right, Conclusion.ACCEPTED), ("00", Conclusion.REJECTED)):
        policy = TpmPolicy.from_operator(json.dumps({"7": value}))
        assert judge(evidence, Approval(tpm_policy=policy)).outcome is outcome
    beyond = Approval(tpm_policy=TpmPolicy.from_operator('{"23": "00"}'))
    assert events(judge(evidence, beyond)) == {"qoute_validation.quote_validation"}


def test_a_policy_that_judges_nothing_is_said_to_do_so() -> None:
    for quote in (None, quote_of(TAMPERED)):
        judgement = judge(
            evidence_of(TAMPERED, quote), Approval(runtime_policy=parse_runtime_policy(EMPTY_POLICY))
        )
        assert judgement.outcome is Conclusion.ACCEPTED
        assert any("the runtime policy has no rules" in text for text in judgement.not_checked)


# -- what the operating system measured


def tpmt(der: bytes) -> bytes:
    """TPMT_SIGNATURE of an ECDSA signature that tpm2-tools wrote plainly."""
    numbers = [number.to_bytes(32, "big") for number in decode_dss_signature(der)]
    return struct.pack(">HH", 0x0018, SHA256) + b"".join(struct.pack(">H", 32) + one for one in numbers)


def unified(tmp_path: Path) -> StoredEvidence:
    """A captured machine with systemd 262 and a unified kernel image, with its quote and both logs."""
    for name in ("msg", "pcrs"):
        (tmp_path / f"q.{name}").write_bytes((SYSTEMD_262 / f"sdboot-uki.quote.{name}").read_bytes())
    (tmp_path / "q.sig").write_bytes(tpmt((SYSTEMD_262 / "sdboot-uki.quote.sig").read_bytes()))
    public = (SYSTEMD_262 / "sdboot-uki.ak.pub").read_bytes()
    (tmp_path / "ak").write_bytes(len(public).to_bytes(2, "big") + public)
    nonce = bytes.fromhex("0011223344556677").decode("latin-1")
    quote = load_quote(str(tmp_path / "q"), str(tmp_path / "ak"), nonce)
    return StoredEvidence(boot_log=firmware_log("sdboot-uki"), os_log=os_log("sdboot-uki"), quote=quote)


@pytest.mark.parametrize("explained", PcrSet)
def test_both_logs_of_a_unified_kernel_explain_its_quote(tmp_path: Path, explained: PcrSet) -> None:
    evidence = unified(tmp_path)
    judgement = judge(evidence, Approval(explained=explained))
    assert (judgement.outcome, judgement.notes) == (Conclusion.ACCEPTED, ())
    assert judgement.boot is not None
    assert {index: judgement.boot.pcrs[SHA256][index] for index in range(16) if index != 10} == {
        index: value for index, value in held("sdboot-uki").items() if index != 10
    }
    policy = compile_measured_boot_policy(
        "{}", policy_name="accept-all", registry=built_in_policies(), explained=explained
    )
    assert judge(evidence, Approval(measured_boot=policy)).outcome is Conclusion.ACCEPTED


@pytest.mark.parametrize(
    ("explained", "left"),
    [("all", {9, 11, 15}), ("automatic", set()), ("boot", {9}), ("firmware", set())],
)
def test_without_the_second_log_the_chosen_pcrs_are_what_the_first_explains(
    tmp_path: Path, explained: str, left: set[int]
) -> None:
    evidence = replace(unified(tmp_path), os_log=None)
    judgement = judge(evidence, Approval(explained=PcrSet(explained)))
    assert events(judgement) == {f"measured_boot.invalid_pcr_{index}" for index in left}


@pytest.mark.parametrize("boot", UNIFIED)
def test_logs_alone_are_held_to_their_grammar(boot: str) -> None:
    evidence = StoredEvidence(boot_log=firmware_log(boot), os_log=os_log(boot))
    assert judge(evidence, Approval(explained=PcrSet.ALL)).outcome is Conclusion.ACCEPTED
    forged = (os_log(boot) or b"").replace(b"leave-initrd", b"leave-orbit!")
    judgement = judge(replace(evidence, os_log=forged), Approval())
    assert "measured_boot.os.forged_record" in events(judgement)
    unreadable = judge(replace(evidence, os_log=b"?"), Approval())
    assert events(unreadable) == {"measured_boot.parser.os_log.error"}
