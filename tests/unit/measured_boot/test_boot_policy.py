import json
from dataclasses import replace

import pytest

from keylime.config.options import TABLES
from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.boot_policy import (
    MeasuredBootPolicy,
    built_in_policies,
    compile_measured_boot_policy,
)
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.pcr_sets import NAMES, PcrSet
from keylime.measured_boot.policies import Judge, Objection, PolicyRegistry
from keylime.tpm.pcr import MEASURED_BOOT_PCRS
from tests.captures import capture
from tests.fakes.measured_boot import reference_state

REGISTRY = built_in_policies()
LOG = parse_event_log(capture("grub-secureboot").boot_log)


class ManyObjections:
    """Rules over typed events, as our own are."""

    def get_relevant_pcrs(self) -> frozenset[int]:
        return frozenset({0, 10, 23})

    def compile(self, refstate: object) -> Judge:
        return lambda log, bank: tuple(
            Objection(f"reason {event.number}", event.number) for event in log.events
        )


@pytest.mark.parametrize("text", [None, "", "null", " null "])
@pytest.mark.parametrize("name", ["accept-all", "reject-all", "example", "nobody"])
def test_no_reference_state_turns_measured_boot_off(text: str | None, name: str) -> None:
    assert compile_measured_boot_policy(text, policy_name=name, registry=REGISTRY) is None


@pytest.mark.parametrize("text", ["{}", " {} ", "[]", "0", "false", '""'])
@pytest.mark.parametrize("name", ["accept-all", "example"])
def test_an_empty_reference_state_demands_the_replay_and_nothing_else(text: str, name: str) -> None:
    policy = compile_measured_boot_policy(text, policy_name=name, registry=REGISTRY)
    assert policy is not None
    assert policy.required_pcrs == MEASURED_BOOT_PCRS
    assert policy.evaluate(LOG, HashAlgorithm.SHA256) == ()


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("text", ["{", "no", "{'a': 1}", "[" * 101 + "]" * 101, "[" * 100_000])
def test_a_text_that_is_not_json_is_a_policy_error(text: str, is_stored: bool) -> None:
    with pytest.raises(PolicyError, match="reference state for measured boot is n"):
        compile_measured_boot_policy(text, policy_name="accept-all", registry=REGISTRY, is_stored=is_stored)


@pytest.mark.parametrize("name", ["accept-all", "reject-all", "example"])
@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": [{"a": {}, "a": {}}]}'])
def test_l5_a_reference_state_with_a_key_twice_is_refused_and_the_key_named(name: str, text: str) -> None:
    with pytest.raises(PolicyError, match="the key 'a' is given twice"):
        compile_measured_boot_policy(text, policy_name=name, registry=REGISTRY)


def test_a_reference_state_that_was_kept_with_a_key_twice_is_read_as_it_was_then() -> None:
    policy = compile_measured_boot_policy(
        '{"a": 1, "a": 2}', policy_name="accept-all", registry=REGISTRY, is_stored=True
    )
    assert policy is not None
    assert policy.refstate == {"a": 2}


@pytest.mark.parametrize("name", ["reject-all", "nobody"])
@pytest.mark.parametrize("text", ["{}", "[]", '{"a": 1}'])
def test_m14_reject_all_rejects_whatever_the_reference_state(name: str, text: str) -> None:
    policy = compile_measured_boot_policy(text, policy_name=name, registry=REGISTRY)
    assert policy is not None
    assert policy.required_pcrs == MEASURED_BOOT_PCRS
    (finding,) = policy.evaluate(LOG, HashAlgorithm.SHA256)
    assert finding.event_id == f"measured_boot.policy_{name}"


def test_what_passed_while_nothing_was_rejected_is_judged_again() -> None:
    """The hash tells a checkpoint whether the content of a log was judged by this policy."""
    registry = PolicyRegistry({"mine": ManyObjections()})
    before = compile_measured_boot_policy("{}", policy_name="mine", registry=registry)
    registry.unregister("mine")
    after = compile_measured_boot_policy("{}", policy_name="mine", registry=registry)
    assert before is not None
    assert after is not None
    assert before.content_hash != after.content_hash


def test_accept_all_accepts_any_content_of_all_pcrs() -> None:
    policy = compile_measured_boot_policy('{"a": 1}', policy_name="accept-all", registry=REGISTRY)
    assert policy is not None
    assert policy.required_pcrs == MEASURED_BOOT_PCRS
    assert policy.evaluate(LOG, HashAlgorithm.SHA256) == ()


@pytest.mark.parametrize("name", ["reject-all", "nobody"])
def test_reject_all_and_unknown_names_reject_under_their_own_name(name: str) -> None:
    policy = compile_measured_boot_policy('{"a": 1}', policy_name=name, registry=REGISTRY)
    assert policy is not None
    assert policy.required_pcrs == MEASURED_BOOT_PCRS
    (finding,) = policy.evaluate(LOG, HashAlgorithm.SHA256)
    assert finding.event_id == f"measured_boot.policy_{name}"
    assert finding.context["policy"] == name
    assert finding.context["refstate"] == {"a": 1}
    assert finding.context["reason"] == "reject all"
    assert finding.recoverable


def test_a_policy_gets_the_measured_boot_pcrs_among_those_it_names() -> None:
    policy = compile_measured_boot_policy(
        '{"a": 1}', policy_name="many", registry=PolicyRegistry({"many": ManyObjections()})
    )
    assert policy is not None
    assert policy.required_pcrs == {0}


def test_many_objections_are_one_finding_of_bounded_size() -> None:
    policy = compile_measured_boot_policy(
        '{"a": 1}', policy_name="many", registry=PolicyRegistry({"many": ManyObjections()})
    )
    assert policy is not None
    (finding,) = policy.evaluate(LOG, HashAlgorithm.SHA256)
    assert str(finding.context["reason"]).startswith("event 0: reason 0; event 1: reason 1; ")
    assert str(finding.context["reason"]).endswith("event 15: reason 15; and 40 more")
    (exactly,) = policy.evaluate(replace(LOG, events=LOG.events[:16]), HashAlgorithm.SHA256)
    assert str(exactly.context["reason"]).endswith("event 15: reason 15")


def test_the_example_policy_refuses_what_is_not_its_reference_state() -> None:
    with pytest.raises(PolicyError, match="scrtm_and_bios"):
        compile_measured_boot_policy('{"a": 1}', policy_name="example", registry=REGISTRY)


def test_the_built_in_policies_have_their_known_names() -> None:
    assert built_in_policies().get_policy_names() == (
        "accept-all",
        "components",
        "efi-stub",
        "example",
        "reject-all",
        "shim-grub",
        "systemd-boot",
        "uki",
        "unmeasured-loader",
    )


FIRMWARE, BOOT = frozenset(range(8)), MEASURED_BOOT_PCRS - {11, 15}


def compiled(text: str, name: str = "accept-all", explained: PcrSet = PcrSet.AUTOMATIC) -> MeasuredBootPolicy:
    policy = compile_measured_boot_policy(text, policy_name=name, registry=REGISTRY, explained=explained)
    assert policy is not None
    return policy


@pytest.mark.parametrize("text", ["{}", '{"a": 1}'])
def test_without_a_choice_what_systemd_extends_is_excused_before_its_log_has_come(text: str) -> None:
    policy = compiled(text)
    assert policy.required_pcrs == MEASURED_BOOT_PCRS
    assert policy.if_logged == {9, 11, 15}
    assert compiled(text, "reject-all").if_logged == frozenset()


@pytest.mark.parametrize(
    ("chosen", "pcrs"), [("firmware", FIRMWARE), ("boot", BOOT), ("all", MEASURED_BOOT_PCRS)]
)
@pytest.mark.parametrize("text", ["{}", '{"a": 1}'])
def test_a_choice_holds_for_all_agents_or_for_one_reference_state(
    chosen: str, pcrs: frozenset[int], text: str
) -> None:
    by_option = compiled(text, explained=PcrSet(chosen))
    by_member = compiled(json.dumps({**json.loads(text), "explained_pcrs": chosen}))
    assert by_option.required_pcrs == by_member.required_pcrs == pcrs
    assert by_option.if_logged == by_member.if_logged == frozenset()
    assert len({by_option.content_hash, by_member.content_hash, compiled(text).content_hash}) == 3
    overridden = compiled(json.dumps({"explained_pcrs": "automatic"}), explained=PcrSet(chosen))
    assert overridden.if_logged == {9, 11, 15}


def test_a_choice_adds_to_what_rules_rest_on_and_takes_nothing_away() -> None:
    state = json.dumps({**reference_state(), "explained_pcrs": "firmware"})
    assert compiled(state, "example").required_pcrs == {*range(10), 14}
    assert compiled(state.replace('"firmware"', '"all"'), "example").required_pcrs == MEASURED_BOOT_PCRS


def test_rules_do_not_see_the_choice_and_it_alone_is_no_demand() -> None:
    assert compiled('{"explained_pcrs": "all"}').judge is None
    assert compiled('{"explained_pcrs": "all"}', "example").judge is None
    assert compiled('{"explained_pcrs": "all"}', "reject-all").judge is not None


@pytest.mark.parametrize("choice", ["none", "", 7, None, ["all"], {}])
def test_a_choice_that_is_none_is_refused(choice: object) -> None:
    with pytest.raises(PolicyError, match="explained_pcrs is not one of automatic, firmware, boot, all"):
        compiled(json.dumps({"explained_pcrs": choice}))


def test_the_option_has_the_same_names() -> None:
    options = TABLES["verifier"].by_key()
    assert options["verifier", "measured_boot_explained_pcrs"].choices == NAMES
