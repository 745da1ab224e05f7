"""One-shot verification of captured evidence: what polling would accept is valid, and nothing else (T13)."""

import base64
import contextlib
import functools
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.appraisal.findings import Finding
from keylime.errors import KeylimeError
from keylime.hashes import HashAlgorithm
from keylime.messages.verification import TpmEvidence
from keylime.policy.measured_boot import built_in_policies, compile_measured_boot_policy
from keylime.tpm.keys import SignatureScheme, parse_attestation_key
from keylime.tpm.pcr import PcrValues
from keylime_verifier.evidence_check import EvidenceRules, UnusableRequest, judge_evidence, judge_identity
from tests.captures import VM_DEBIAN12, Stage, capture
from tests.evidence import policy_of
from tests.fakes.software_ak import AK_ATTRIBUTES, SoftwareAk

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


def judged(evidence: TpmEvidence, rules: EvidenceRules = RULES) -> tuple[Finding, ...]:
    steps = judge_evidence(evidence, rules)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            findings: tuple[Finding, ...] = end.value
            return findings


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
        ("runtime_policy", "{"),
        ("runtime_policy", '{"digests": 7}'),
        ("mb_policy", "{"),
    ],
)
def test_what_cannot_be_read_is_named_and_is_no_verdict(field: str, value: str) -> None:
    with pytest.raises(UnusableRequest, match=field) as refused:
        judged(changed(**{field: value}))
    assert refused.value.finding.event_id == "default.invalid_param"


@settings(deadline=None, max_examples=150)
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


def test_an_identity_is_proven_by_signature_nonce_and_bank() -> None:
    quote = stage().quote("ecdsa", "sha256")
    key = parse_attestation_key(quote.ak_public)
    other = parse_attestation_key(stage().quote("rsassa", "sha256").ak_public)
    assert judge_identity(quote.text, quote.nonce, "sha256", key) is None
    assert judge_identity(quote.text, quote.nonce + "x", "sha256", key) is not None
    assert judge_identity(quote.text, quote.nonce, "sha1", key) is not None
    assert judge_identity(quote.text, quote.nonce, "nothing", key) is not None
    assert judge_identity("r", quote.nonce, "sha256", key) is not None
    assert judge_identity(quote.text, quote.nonce, "sha256", other) is not None


@pytest.mark.parametrize("ak", ["rsassa", "rsapss", "ecdsa"])
@pytest.mark.parametrize("nonce", ["right", "wrong"])
def test_n18_an_unknown_agent_is_answered_like_a_known_one_with_another_key(ak: str, nonce: str) -> None:
    quote = stage().quote(ak, "sha256")
    stranger = parse_attestation_key(SoftwareAk.generate("ecc256", SignatureScheme.ECDSA).tpm2b_public)
    sent = quote.nonce if nonce == "right" else nonce
    unknown = judge_identity(quote.text, sent, "sha256", None)
    assert unknown == judge_identity(quote.text, sent, "sha256", stranger)
    assert unknown is not None


def test_a_refused_request_is_no_verdict_about_a_machine() -> None:
    assert issubclass(UnusableRequest, KeylimeError)
    assert not UnusableRequest("missing_param", "x").finding.recoverable
