from dataclasses import replace

import pytest

from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.policies import Judge, Objection, PolicyRegistry
from keylime.policy.measured_boot import built_in_policies, compile_measured_boot_policy
from keylime.tpm.pcr import MEASURED_BOOT_PCRS
from tests.captures import capture

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
@pytest.mark.parametrize("name", ["accept-all", "reject-all", "example", "nobody"])
def test_an_empty_reference_state_demands_the_replay_and_nothing_else(text: str, name: str) -> None:
    policy = compile_measured_boot_policy(text, policy_name=name, registry=REGISTRY)
    assert policy is not None
    assert policy.required_pcrs == MEASURED_BOOT_PCRS
    assert policy.evaluate(LOG, HashAlgorithm.SHA256) == ()


@pytest.mark.parametrize("text", ["{", "no", "{'a': 1}", "[" * 100_000])
def test_a_text_that_is_not_json_is_a_policy_error(text: str) -> None:
    with pytest.raises(PolicyError, match="not JSON"):
        compile_measured_boot_policy(text, policy_name="accept-all", registry=REGISTRY)


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
    assert built_in_policies().get_policy_names() == ("accept-all", "example", "reject-all")
