import json

import pytest

from keylime.errors import PolicyError
from keylime.tpm.pcr import MEASURED_BOOT_PCRS
from keylime.tpm.tpm_policy import TpmPolicy

A, B = "ab" * 32, "cd" * 20


def test_an_operators_policy_gets_lists_lower_case_and_a_mask() -> None:
    policy = TpmPolicy.from_operator(json.dumps({"22": A.upper(), "15": [A, B]}))
    assert json.loads(policy.to_wire()) == {"22": [A], "15": sorted([A, B]), "mask": "0x408000"}
    assert TpmPolicy.from_operator("{}").to_wire() == '{"mask": "0x0"}'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"10": "ab"}', "PCR 10 is used by IMA"),
        ('{"16": "ab"}', "PCR 16 is used by Keylime"),
        ('{"01": "ab"}', "'01'"),
        ('{"001": "ab"}', "'001'"),
        ('{"24": "ab"}', "'24'"),
        ('{"-1": "ab"}', "'-1'"),
        ('{"\u0661": "ab"}', "PCR number"),
        ('{"mask": "0x1"}', "'mask'"),
        ('{"1": "xy"}', "PCR 1"),
        ('{"1": ""}', "PCR 1"),
        ('{"1": "0xab"}', "PCR 1"),
        (json.dumps({"1": "ab" * 64 + "a"}), "PCR 1"),
        ('{"1": [7]}', "PCR 1"),
        ('{"1": null}', "PCR 1"),
        ('{"1": "ab", "1": "cd"}', "given twice"),
        ("[]", "an object"),
        ("{", "not valid JSON"),
    ],
)
def test_a_wrong_policy_is_refused_by_what_is_wrong(text: str, named: str) -> None:
    with pytest.raises(PolicyError) as caught:
        TpmPolicy.from_operator(text)
    assert named in str(caught.value)


def test_the_wire_form_is_read_with_its_own_mask() -> None:
    policy = TpmPolicy.from_wire(json.dumps({"15": A, "mask": "0x408400"}))
    assert policy.values == {15: frozenset({A})}
    assert policy.mask == 0x408400
    assert TpmPolicy.from_wire(policy.to_wire()) == policy


def test_a_value_may_be_as_long_as_the_longest_digest() -> None:
    assert TpmPolicy.from_operator(json.dumps({"1": "ab" * 64})).values == {1: frozenset({"ab" * 64})}


@pytest.mark.parametrize("mask", ["x", "", "0x\uff11", "-0x1", "0x1000000", 7, None])
def test_a_wrong_mask_is_refused(mask: object) -> None:
    with pytest.raises(PolicyError, match="mask"):
        TpmPolicy.from_wire(json.dumps({"mask": mask}))


def test_masks_grow_by_what_other_policies_need() -> None:
    policy = TpmPolicy.from_operator("{}")
    assert policy.with_mask(MEASURED_BOOT_PCRS).mask == 0xFBFF
    assert policy.with_mask({10}).with_mask(MEASURED_BOOT_PCRS).to_wire() == '{"mask": "0xffff"}'


def test_every_quoted_pcr_is_compared_and_all_missing_ones_are_one_finding() -> None:
    policy = TpmPolicy.from_operator(json.dumps({"1": [A], "2": [A], "3": [B], "4": A, "5": []}))
    quoted = {1: bytes.fromhex(A), 2: bytes.fromhex(B), 5: bytes.fromhex(A), 7: b"unlisted"}
    findings = policy.evaluate(quoted)
    assert [finding.event_id for finding in findings] == [
        "pcr_validation.invalid_pcr_2",
        "pcr_validation.invalid_pcr_5",
        "pcr_validation.missing_pcrs",
    ]
    assert findings[0].observed == B
    assert findings[2].context["data"] == [3, 4]
    assert all(finding.recoverable for finding in findings)


@pytest.mark.parametrize("index", range(24))
def test_every_pcr_that_is_pinned_is_compared(index: int) -> None:
    policy = TpmPolicy.from_wire(json.dumps({str(index): [A, "cd" * 32], "mask": "0x0"}))
    assert policy.evaluate({index: bytes.fromhex(A)}) == ()
    (finding,) = policy.evaluate({index: bytes(32)})
    assert finding.event_id == f"pcr_validation.invalid_pcr_{index}"
    assert finding.hint
    assert (f"PCR {index} " in finding.hint) == (index in {10, 16})


def test_no_client_can_pin_the_pcr_of_the_payload_key() -> None:
    """Every policy that others can hold may come; what was stored before is still read."""
    for index in range(24):
        text = json.dumps({str(index): [A], "mask": "0xffffff"})
        if index == 16:
            with pytest.raises(PolicyError, match="tpm_policy: PCR 16 is used by Keylime"):
                TpmPolicy.from_client(text)
        else:
            assert TpmPolicy.from_client(text) == TpmPolicy.from_wire(text)
    assert TpmPolicy.from_wire('{"16": "ab"}').values == {16: frozenset({"ab"})}
    assert TpmPolicy.from_client('{"mask": "0x10000"}').mask == 1 << 16
