"""One-shot verification of captured evidence: what polling would accept is valid, and nothing else (T13)."""

import base64
import contextlib
import functools
import hashlib
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.errors import KeylimeError
from keylime.findings.finding import Finding
from keylime.hashes import HashAlgorithm
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.measured_boot.boot_policy import built_in_policies, compile_measured_boot_policy
from keylime.messages.verification import TpmEvidence
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import PcrValues
from keylime_verifier.verification.evidence_check import (
    EvidenceJudgement,
    EvidenceRules,
    UnusableRequest,
    judge_evidence,
)
from keylime_verifier.verification.evidence_claims import MAX_REPEATED
from tests.captures import VM_DEBIAN12, Stage, capture
from tests.effort import examples
from tests.evidence import policy_of
from tests.fakes.software_ak import AK_ATTRIBUTES, SoftwareAk
from tests.os_logs import firmware_log, held, os_log

RULES = EvidenceRules(
    functools.partial(compile_measured_boot_policy, policy_name="accept-all", registry=built_in_policies())
)
NAME = "direct-ima-ng"
EK = base64.b64encode((VM_DEBIAN12 / NAME / "ek_rsa.tpm2b_public").read_bytes()).decode()


@functools.cache
def stage() -> Stage:
    return capture(NAME).stages[0]


@functools.cache
def genuine(ak: str = "rsassa", bank: str = "sha256") -> TpmEvidence:
    """A stage with policies that it fulfils, all three."""
    quote = stage().quote(ak, bank)
    pcr_5 = stage().pcrs(bank)[5].hex()
    return TpmEvidence(
        quote=quote.text,
        nonce=quote.nonce,
        hash_alg=bank,
        tpm_ek=EK,
        tpm_ak=base64.b64encode(quote.ak_public).decode(),
        tpm_policy=json.dumps({"5": [pcr_5], "mask": "0x20"}),
        runtime_policy=policy_of([stage().ascii_list]).to_json(),
        mb_policy="{}",
        ima_measurement_list=stage().ascii_list.decode(),
        mb_log=base64.b64encode(capture(NAME).boot_log).decode(),
    )


def judgement_on(evidence: TpmEvidence, rules: EvidenceRules = RULES) -> EvidenceJudgement:
    steps = judge_evidence(evidence, rules)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            judgement: EvidenceJudgement = end.value
            assert not (judgement.findings and msgspec.to_builtins(judgement.claims))
            return judgement


def judged(evidence: TpmEvidence, rules: EvidenceRules = RULES) -> tuple[Finding, ...]:
    return judgement_on(evidence, rules).findings


def claimed(evidence: TpmEvidence) -> dict[str, str]:
    claims: dict[str, str] = msgspec.to_builtins(judgement_on(evidence).claims)
    return claims


def changed(**fields: Any) -> TpmEvidence:
    return msgspec.structs.replace(genuine(), **fields)


@pytest.mark.parametrize("ak", ["rsassa", "rsapss", "ecdsa"])
@pytest.mark.parametrize("bank", ["sha1", "sha256"])
def test_genuine_evidence_is_valid_in_every_scheme_and_bank(ak: str, bank: str) -> None:
    evidence = genuine(ak, bank)
    assert judged(evidence) == ()


@pytest.mark.parametrize("alone", ["tpm_policy", "runtime_policy", "mb_policy"])
def test_one_policy_suffices(alone: str) -> None:
    others = {"tpm_policy", "runtime_policy", "mb_policy"} - {alone}
    assert judged(changed(**dict.fromkeys(others))) == ()


LIST = stage().ascii_list.decode()

BAD: list[tuple[dict[str, Any], str]] = [
    ({"nonce": "another"}, "qoute_validation.quote_validation"),
    ({"quote": "rAAAA:AAAA:AAAA"}, "qoute_validation.quote_validation"),
    ({"quote": "no quote"}, "qoute_validation.quote_validation"),
    ({"hash_alg": "sha1"}, "qoute_validation.quote_validation"),
    ({"hash_alg": "md5"}, "qoute_validation.invalid_hash_alg"),
    (
        {"tpm_ak": base64.b64encode(stage().quote("ecdsa", "sha256").ak_public).decode()},
        "qoute_validation.quote_validation",
    ),
    (
        {"tpm_policy": json.dumps({"5": ["00" * 32], "mask": "0x20"}), "mb_policy": None},
        "pcr_validation.invalid_pcr_5",
    ),
    (
        {"tpm_policy": json.dumps({"20": ["00" * 32], "mask": "0x100000"})},
        "qoute_validation.quote_validation",
    ),
    ({"mb_log": None}, "pcr_validation.unused_pcr_0"),
    ({"mb_log": "***"}, "measured_boot.parser.log.base64decode"),
    ({"mb_log": base64.b64encode(b"\0" * 40).decode()}, "measured_boot."),
    ({"ima_measurement_list": None}, "pcr_validation.unused_pcr_10"),
    ({"ima_measurement_list": ""}, "pcr_validation.unused_pcr_10"),
    ({"ima_measurement_list": LIST.partition("\n")[2]}, "ima."),
    ({"ima_measurement_list": LIST[: LIST.rindex("\n", 0, -2) + 1]}, "ima.pcr_mismatch"),
    ({"runtime_policy": policy_of([b""]).to_json()}, "ima."),
]


@pytest.mark.parametrize(("changes", "event"), BAD)
def test_evidence_that_does_not_hold_is_not_valid(changes: dict[str, Any], event: str) -> None:
    findings = judged(changed(**changes))
    assert [finding.event_id for finding in findings if finding.event_id.startswith(event)], findings


def test_every_policy_speaks_although_another_has_spoken() -> None:
    findings = judged(
        changed(
            runtime_policy=policy_of([b""]).to_json(),
            mb_policy='{"anything": 1}',
        ),
        EvidenceRules(
            functools.partial(
                compile_measured_boot_policy, policy_name="reject-all", registry=built_in_policies()
            )
        ),
    )
    components = {finding.event_id.partition(".")[0] for finding in findings}
    assert {"ima", "measured_boot"} <= components


def test_t3_a_key_that_could_sign_anything_is_no_attestation_key() -> None:
    strict = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
    loose = replace(strict, attributes=AK_ATTRIBUTES & ~0x00010000)  # not restricted
    values = PcrValues(HashAlgorithm.SHA256, {5: bytes(32)})
    evidence = changed(
        tpm_ak=base64.b64encode(loose.tpm2b_public).decode(),
        quote=loose.quote(b"nonce", values, clock=1, reset_count=1, restart_count=0),
        nonce="nonce",
        tpm_policy=json.dumps({"5": ["00" * 32]}),
        runtime_policy=None,
        mb_policy=None,
    )
    (finding,) = judged(evidence)
    assert "restricted" in finding.explanation


@pytest.mark.parametrize("field", ["quote", "nonce", "hash_alg", "tpm_ek", "tpm_ak"])
@pytest.mark.parametrize("nothing", [None, ""])
def test_what_is_missing_is_named_and_is_no_verdict(field: str, nothing: str | None) -> None:
    with pytest.raises(UnusableRequest) as refused:
        judged(changed(**{field: nothing}))
    assert refused.value.finding.event_id == "default.missing_param"
    assert refused.value.finding.context == {"message": f'missing parameter "{field}"'}


def test_without_any_policy_there_is_nothing_to_judge_by() -> None:
    for mb_policy in (None, "", "null"):
        with pytest.raises(UnusableRequest) as refused:
            judged(changed(tpm_policy=None, runtime_policy="", mb_policy=mb_policy))
        assert refused.value.finding.event_id == "default.missing_policy"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tpm_ek", "***"),
        ("tpm_ek", "AAAA"),
        ("tpm_ak", "***"),
        ("tpm_policy", "{"),
        ("tpm_policy", '{"24": ["00"]}'),
        ("tpm_policy", '{"16": ["00"]}'),
        ("tpm_policy", json.dumps({"5": "00" * 32, "16": ["00" * 32, "ab" * 32], "mask": "0x10020"})),
        ("runtime_policy", "{"),
        ("runtime_policy", '{"digests": 7}'),
        ("mb_policy", "{"),
    ],
)
def test_what_cannot_be_read_is_named_and_is_no_verdict(field: str, value: str) -> None:
    with pytest.raises(UnusableRequest, match=field) as refused:
        judged(changed(**{field: value}))
    assert refused.value.finding.event_id == "default.invalid_param"


@settings(deadline=None, max_examples=examples(150))
@given(
    fields=st.dictionaries(
        st.sampled_from(TpmEvidence.__struct_fields__),
        st.none()
        | st.text(max_size=60)
        | st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode()),
        min_size=1,
    )
)
def test_any_text_in_any_field_is_refused_or_judged(fields: dict[str, str | None]) -> None:
    with contextlib.suppress(UnusableRequest):
        findings = judged(changed(**fields))
        # Only what can be left out, because another policy is there to judge by, may change and be valid.
        assert findings or not {"quote", "nonce", "hash_alg", "tpm_ak"} & set(fields)


PROVEN_BY_THE_QUOTE = {"quote", "nonce", "hash_alg", "tpm_ak"}


def test_l9_the_endorsement_key_is_tied_to_nothing_and_not_claimed() -> None:
    claims = claimed(genuine())
    assert set(claims) == PROVEN_BY_THE_QUOTE | {
        "tpm_policy",
        "runtime_policy",
        "mb_policy",
        "ima_measurement_list",
        "mb_log",
    }
    assert all(claims[name] == getattr(genuine(), name) for name in PROVEN_BY_THE_QUOTE)


def digest_of(text: str | None) -> str:
    return f"sha256:{hashlib.sha256((text or '').encode()).hexdigest()}"


def test_l9_long_documents_are_claimed_by_digest_and_short_ones_repeated() -> None:
    evidence, claims = genuine(), claimed(genuine())
    for name in ("runtime_policy", "ima_measurement_list"):
        assert len(getattr(evidence, name)) > MAX_REPEATED
        assert claims[name] == digest_of(getattr(evidence, name))
    assert (claims["tpm_policy"], claims["mb_policy"]) == (evidence.tpm_policy, "{}")
    assert claims["mb_log"] == evidence.mb_log
    spaced = "{" + " " * (MAX_REPEATED - 2) + "}"
    assert claimed(changed(mb_policy=spaced))["mb_policy"] == spaced
    assert claimed(changed(mb_policy=spaced + " "))["mb_policy"] == digest_of(spaced + " ")


@pytest.mark.parametrize(
    ("changes", "unproven"),
    [
        ({"mb_policy": None}, {"mb_policy", "mb_log"}),
        ({"mb_policy": "null"}, {"mb_policy", "mb_log"}),
        ({"runtime_policy": None}, {"runtime_policy", "ima_measurement_list"}),
        ({"runtime_policy": EMPTY_POLICY}, {"runtime_policy", "ima_measurement_list"}),
        ({"tpm_policy": None}, {"tpm_policy"}),
        ({"tpm_policy": "{}"}, {"tpm_policy"}),
        ({"tpm_policy": '{"mask": "0x20"}'}, set()),
        (
            {"tpm_policy": "{}", "runtime_policy": EMPTY_POLICY, "mb_policy": None},
            {"tpm_policy", "runtime_policy", "mb_policy", "ima_measurement_list", "mb_log"},
        ),
    ],
)
def test_l9_what_nobody_looked_at_is_not_claimed(changes: dict[str, Any], unproven: set[str]) -> None:
    assert claimed(changed(**changes)).keys() == claimed(genuine()).keys() - unproven


def test_l9_lines_after_those_that_the_quote_covers_are_not_claimed() -> None:
    forged = f"10 {'a' * 40} ima-ng sha256:{'b' * 64} /tmp/never\n"
    assert judged(changed(ima_measurement_list=LIST + forged)) == ()
    assert claimed(changed(ima_measurement_list=LIST + forged))["ima_measurement_list"] == digest_of(LIST)


def test_a_refused_request_is_no_verdict_about_a_machine() -> None:
    assert issubclass(UnusableRequest, KeylimeError)
    assert not UnusableRequest("missing_param", "x").finding.recoverable


# -- what the operating system measured


AK = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)


def unified(**changes: str | None) -> TpmEvidence:
    """Evidence of a captured machine whose operating system measures, quoted by a software AK."""
    quoted = PcrValues(HashAlgorithm.SHA256, held("sdboot-uki"))
    evidence = TpmEvidence(
        quote=AK.quote(b"nonce", quoted),
        nonce="nonce",
        hash_alg="sha256",
        tpm_ek=EK,
        tpm_ak=base64.b64encode(AK.tpm2b_public).decode(),
        mb_policy='{"explained_pcrs": "all"}',
        mb_log=base64.b64encode(firmware_log("sdboot-uki")).decode(),
        os_log=base64.b64encode(os_log("sdboot-uki") or b"").decode(),
    )
    return msgspec.structs.replace(evidence, **changes)


def test_what_the_operating_system_measured_is_explained_by_its_log_and_not_claimed() -> None:
    """Its records of NV indices are vouched for by nothing, nor are those that are later than the quote."""
    assert judged(unified()) == ()
    assert set(claimed(unified())) == PROVEN_BY_THE_QUOTE | {"mb_policy", "mb_log"}


@pytest.mark.parametrize("log", [None, ""])
def test_without_that_log_it_is_not(log: str | None) -> None:
    found = [finding.event_id for finding in judged(unified(os_log=log))]
    assert found == [f"measured_boot.invalid_pcr_{index}" for index in (9, 11, 15)]
    assert judged(unified(os_log=log, mb_policy='{"explained_pcrs": "firmware"}')) == ()


@pytest.mark.parametrize(
    ("log", "event"),
    [
        ("***", "measured_boot.parser.log.base64decode"),
        (base64.b64encode(b"no log").decode(), "measured_boot.parser.os_log.error"),
    ],
)
def test_a_log_of_the_operating_system_that_is_none_is_named(log: str, event: str) -> None:
    assert event in [finding.event_id for finding in judged(unified(os_log=log))]
