import pytest

from keylime.appraisal.challenge import make_challenge, stored_evidence_challenge
from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.reference import Reference
from keylime.ima.keyrings import EMPTY_KEYRING, keyring_of
from keylime.tpm.tpm_policy import TpmPolicy
from tests.appraisal_rounds import Watch, events
from tests.captures import IMA_KEYS_DIRECTORY, capture
from tests.evidence import SoftwareMachine, boot_policy, policy_of, reference

STAGE = capture("direct-efistub").stage("s1-clean")
AK = capture("direct-efistub").ak_public("ecdsa")
KEY_KNOWN = Checkpoint(public_key="a key")


def held_to(tpm_policy: str) -> Reference:
    return reference(AK, tpm_policy=TpmPolicy.from_wire(tpm_policy))


@pytest.mark.parametrize(
    ("checkpoint", "renew", "asks"),
    [(Checkpoint.fresh(), False, True), (KEY_KNOWN, False, False), (KEY_KNOWN, True, True)],
)
def test_the_public_key_is_asked_for_until_it_is_known_and_when_it_is_to_be_renewed(
    checkpoint: Checkpoint, renew: bool, asks: bool
) -> None:
    challenge = make_challenge(held_to("{}"), checkpoint, "nonce", renew_key=renew)
    assert challenge.wants_public_key is asks
    assert challenge.query["partial"] == ("0" if asks else "1")
    assert challenge.query["nonce"] == "nonce"


def test_a_pcr_with_allowed_values_is_asked_for_although_the_mask_leaves_it_out() -> None:
    challenge = make_challenge(held_to('{"15": "00", "mask": "0x3"}'), KEY_KNOWN, "n", renew_key=False)
    assert challenge.pcrs == {0, 1, 15, 16}
    assert challenge.query["mask"] == hex(0x8003)


def test_a_mask_with_pcr_10_demands_the_measurement_list_even_without_a_runtime_policy() -> None:
    machine = SoftwareMachine()
    known = reference(machine.ak.tpm2b_public, tpm_policy=TpmPolicy.from_wire('{"mask": "0x400"}'))
    assert known.demands_ima
    assert events(Watch(machine, known).round(ima_measurement_list=None)) == ["pcr_validation.unused_pcr_10"]


IMA_KEYS = keyring_of([(IMA_KEYS_DIRECTORY / "ima-ec.pub.pem").read_bytes()])


def test_l7_keys_for_files_demand_the_measurement_list_even_without_a_runtime_policy() -> None:
    machine = SoftwareMachine()
    known = reference(machine.ak.tpm2b_public, tenant_keyring=IMA_KEYS)
    assert known.demands_ima
    assert 10 in known.demanded_pcrs
    assert events(Watch(machine, known).round(ima_measurement_list=None)) == ["pcr_validation.unused_pcr_10"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"tpm_policy": TpmPolicy.from_wire('{"mask": "0xf"}')}, True),
        ({"tpm_policy": TpmPolicy.from_wire('{"5": [], "mask": "0x0"}')}, False),
        ({"tpm_policy": TpmPolicy.from_wire('{"mask": "0x400"}')}, False),
        ({"tenant_keyring": IMA_KEYS}, False),
        ({"tenant_keyring": EMPTY_KEYRING}, True),
        ({"measured_boot": boot_policy()}, False),
        ({"runtime_policy": policy_of([STAGE.ascii_list])}, False),
    ],
)
def test_l7_a_reference_says_whether_it_demands_anything(changes: dict[str, object], expected: bool) -> None:
    assert reference(AK, **changes).judges_nothing is expected


def test_the_list_is_asked_for_from_the_first_entry_that_is_not_proven() -> None:
    machine = SoftwareMachine.of_stage(STAGE)
    rules = policy_of([STAGE.ascii_list])
    watch = Watch(machine, reference(machine.ak.tpm2b_public, runtime_policy=rules))
    assert watch.challenge().ima_entry == 0
    watch.accept()
    assert watch.challenge().query["ima_ml_entry"] == str(STAGE.entries)
    without = make_challenge(held_to("{}"), watch.checkpoint, "n", renew_key=False)
    assert without.ima_entry == 0, "nobody asks for a list that no policy judges"


def test_evidence_at_hand_may_cover_more_than_is_demanded_but_not_less() -> None:
    known = reference(AK, measured_boot=boot_policy())
    challenge = stored_evidence_challenge(known, frozenset({0, 16, 23}), "n")
    assert challenge.pcrs == {*range(10), *range(11, 16), 16, 23}
    assert not challenge.binds_key
