"""Rows of an earlier verifier: an agent that is held to as much as before, or one line that says why not."""

import functools
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.measured_boot.boot_policy import built_in_policies, compile_measured_boot_policy
from keylime.messages.verifier import OperationalState
from keylime.takeover.report import Fate, ItemKind
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME
from keylime_verifier.takeover.agents import (
    AgentProposal,
    OldAgent,
    Registered,
    RowContext,
    TakeoverRules,
    convert,
)
from keylime_verifier.takeover.plan import Here, Plan, settle
from keylime_verifier.takeover.policies import OldPolicy, boot_policy, convert_runtime, runtime_policy
from tests.fakes.software_identity import SoftwareIdentity

AK = str(SoftwareIdentity().registration()["aik_tpm"])
OTHER_AK = str(SoftwareIdentity().registration()["aik_tpm"])
DIGEST = "ab" * 32
POLICY = EMPTY_POLICY.replace('"digests": {}', json.dumps({"digests": {"/a": [DIGEST]}})[1:-1])
V = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
compile_boot = functools.partial(
    compile_measured_boot_policy, policy_name="accept-all", registry=built_in_policies(), is_stored=True
)


def rules(**changes: Any) -> TakeoverRules:
    given = {
        "verifier_id": "default",
        "verifier_ip": "127.0.0.1",
        "verifier_port": 8881,
        "asks_silent_agents_on": True,
        "compile_boot_policy": compile_boot,
    }
    return TakeoverRules(**{**given, **changes})


def around(
    runtime: dict[int, OldPolicy] | None = None,
    boot: dict[int, OldPolicy] | None = None,
    registered: dict[str, Registered] | None = None,
) -> RowContext:
    policies = {1: OldPolicy("fleet", POLICY, demands_ima=True), 2: OldPolicy("agent-1", POLICY)}
    return RowContext(policies | (runtime or {}), boot or {}, registered or {}, rules())


def row(**changes: object) -> dict[str, Any]:
    whole = {
        "agent_id": "agent-1",
        "v": V,
        "ip": "10.0.0.1",
        "port": 9002,
        "operational_state": 3,
        "public_key": "PEM",
        "tpm_policy": json.dumps('{"mask": "0x400"}'),
        "meta_data": '{"cert_serial": 2}',
        "revocation_key": "",
        "accept_tpm_hash_algs": '["sha256"]',
        "accept_tpm_encryption_algs": '["rsa"]',
        "accept_tpm_signing_algs": '["rsassa"]',
        "hash_alg": "sha256",
        "enc_alg": "rsa2048",
        "sign_alg": "rsassa",
        "ima_sign_verification_keys": "[]",
        "verifier_id": "default",
        "verifier_ip": "127.0.0.1",
        "verifier_port": 8881,
        "supported_version": "2.5",
        "ak_tpm": AK,
        "mtls_cert": "disabled",
        "attestation_count": 5,
        "ima_policy_id": 1,
        "severity_level": None,
        "last_event_id": None,
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not ...}


def taken(surroundings: RowContext | None = None, **changes: object) -> tuple[OldAgent, AgentProposal]:
    proposal = convert(row(**changes), surroundings or around())
    assert proposal.agent is not None, proposal.item
    return proposal.agent, proposal


def test_an_agent_is_taken_as_it_is() -> None:
    agent, proposal = taken()
    assert proposal.item.fate is Fate.TAKEN
    assert agent.enrolment.runtime_policy == "fleet"
    assert agent.enrolment.tpm_policy == '{"mask": "0x400"}'
    assert agent.enrolment.accept_tpm_hash_algs == ("sha256",)
    assert agent.enrolment.ima_sign_verification_keys == ""
    assert (agent.secrets.v, agent.enrolment.has_v) == (V, True)
    assert agent.progress.checkpoint.ima.next_entry == 0
    assert agent.progress.v_delivered_to == "PEM", "nobody gets a payload twice"


@pytest.mark.parametrize(
    ("number", "state", "is_polled"),
    [
        *((1, 1, True), (2, 1, True), (3, 3, True), (4, 3, True), (5, 3, True), (6, 3, True), (7, 7, True)),
        *((9, 9, False), (10, 10, False), (0, 0, False), (None, 7, True), (99, 7, True), ("x", 7, True)),
    ],
)
def test_states_go_on_where_they_can(number: object, state: int, is_polled: bool) -> None:
    agent, _ = taken(operational_state=number)
    assert agent.progress.operational_state is OperationalState(state)
    assert agent.progress.is_polled is is_polled
    assert (agent.progress.v_delivered_to is None) is (number in (5, 6)), "V that is owed is given"


def test_silence_is_final_where_the_operator_says_so() -> None:
    quiet = RowContext(around().runtime, {}, {}, rules(asks_silent_agents_on=False))
    assert not taken(quiet, operational_state=7)[0].progress.is_polled


def test_an_agent_that_was_never_attested_is_still_owed_its_payload() -> None:
    assert taken(attestation_count=0)[0].progress.v_delivered_to is None


def test_single_and_double_encoding_of_a_tpm_policy_are_read() -> None:
    plain = '{"23": "0xAB", "mask": "0x800400"}'
    for text in (plain, json.dumps(plain)):
        agent, proposal = taken(tpm_policy=text)
        assert json.loads(agent.enrolment.tpm_policy) == {"23": ["ab"], "mask": "0x800400"}
        assert proposal.item.fate is Fate.CHANGED


@pytest.mark.parametrize("text", [None, "", '""', "null"])
def test_no_tpm_policy_is_an_empty_one(text: object) -> None:
    agent, _ = taken(tpm_policy=text)
    assert agent.enrolment.tpm_policy == "{}"
    assert (agent.enrolment.runtime_policy, agent.own_runtime) == ("agent-1", EMPTY_POLICY)


def test_a_named_policy_that_was_never_applied_is_not_applied_now() -> None:
    agent, proposal = taken(tpm_policy='{"mask": "0x0"}')
    assert agent.own_runtime == EMPTY_POLICY
    assert "never applied" in str(proposal.item)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tpm_policy": '{"mask": '}, "tpm_policy is not JSON"),
        ({"tpm_policy": '{"a":' * 101 + "1" + "}" * 101}, "tpm_policy is nested too deeply"),
        ({"tpm_policy": '"not json"'}, "tpm_policy"),
        ({"tpm_policy": "[]"}, "tpm_policy"),
        ({"tpm_policy": '{"mask": "0x400", "99": ["00"]}'}, "tpm_policy"),
        ({"ima_policy_id": None}, "runtime policy is missing"),
        ({"ima_policy_id": 9999}, "runtime policy is missing"),
        ({"ima_policy_id": 3}, "cut"),
        ({"ima_policy_id": 4}, "runtime policy is missing or empty"),
        ({"mb_policy_id": 9999}, "measured boot policy"),
        ({"mb_refstate": '{"scrtm'}, "JSON"),
        ({"ima_sign_verification_keys": "{}x"}, "ima_sign_verification_keys"),
        ({"ip": None, "port": None}, "attests by itself"),
        ({"ip": "a/b"}, "ip is not"),
        ({"ip": ""}, "ip is missing"),
        ({"port": 70000}, "port is 70000"),
        ({"ak_tpm": None}, "at the registrar"),
        ({"ak_tpm": "AA=="}, "ak_tpm cannot be used"),
        ({"mtls_cert": "x"}, "mtls_cert"),
        ({"operational_state": 8}, "deletion was under way"),
        ({"agent_id": "a/b"}, "another uuid"),
        ({"agent_id": None}, "another uuid"),
        ({"verifier_id": "x" * 101}, "verifier_id"),
        ({"tpm_policy": '"\\ud800"'}, "tpm_policy is not UTF-8"),
    ],
)
def test_what_cannot_be_held_to_as_much_is_not_taken(changes: dict[str, object], words: str) -> None:
    policies = {3: OldPolicy("cut", problem="it is not JSON"), 4: OldPolicy("nothing")}
    proposal = convert(row(**changes), around(policies))
    assert proposal.agent is None
    assert proposal.item.fate is Fate.NOT_TAKEN
    assert words in str(proposal.item)


def test_what_an_agent_can_do_without_is_left_out_and_said() -> None:
    agent, proposal = taken(
        v="no share", revocation_key="no key", meta_data="no json", attestation_count=-1, verifier_port=0
    )
    assert (agent.secrets.v, agent.secrets.revocation_key, agent.enrolment.meta_data) == (None, "", "{}")
    assert len(proposal.item.remarks) == 5
    assert "no share" not in str(proposal.item)


def test_keys_of_old_rows_come_from_the_registrar() -> None:
    agent, proposal = taken(
        around(registered={"agent-1": Registered(AK, "disabled")}), ak_tpm=None, mtls_cert=...
    )
    assert (agent.enrolment.ak_tpm, agent.enrolment.mtls_cert) == (AK, "disabled")
    assert proposal.item.fate is Fate.CHANGED
    _, proposal = taken(around(registered={"agent-1": Registered(OTHER_AK, None)}))
    assert "the registrar has another AK" in str(proposal.item)


def test_missing_algorithms_are_the_defaults_and_an_empty_list_stays_empty() -> None:
    agent, proposal = taken(accept_tpm_hash_algs=None, accept_tpm_signing_algs="[]")
    assert agent.enrolment.accept_tpm_hash_algs == ("sha512", "sha384", "sha256")
    assert agent.enrolment.accept_tpm_signing_algs == ()
    assert "accept_tpm_hash_algs is missing" in str(proposal.item)


def test_another_verifiers_agent_is_taken_for_it() -> None:
    agent, proposal = taken(verifier_id="second")
    assert agent.enrolment.verifier_id == "second"
    assert "belongs to the verifier 'second'" in str(proposal.item)
    assert taken(verifier_id="")[0].enrolment.verifier_id == "default"


def test_versions_may_only_rise_so_that_unknown_ones_begin_at_the_bottom() -> None:
    assert taken(supported_version="2.5")[0].progress.supported_version == "2.5"
    for unknown in ("1.0", "", None, "9.9"):
        assert taken(supported_version=unknown)[0].progress.supported_version == "2.0"


def test_the_reference_state_in_the_row_of_older_releases_is_the_agents_own() -> None:
    agent, _ = taken(mb_refstate='{"a": 1}')
    assert (agent.enrolment.measured_boot_policy, agent.own_boot) == ("agent-1", '{"a": 1}')
    for text in (None, "", "null"):
        assert taken(mb_refstate=text)[0].enrolment.measured_boot_policy is None


def test_a_list_in_the_row_of_older_releases_is_converted() -> None:
    text = json.dumps({"allowlist": {"/a": [DIGEST]}, "exclude": ["/tmp"]})  # noqa: S108  in a policy
    agent, _ = taken(ima_policy_id=..., allowlist=text)
    assert agent.enrolment.runtime_policy == "agent-1"
    assert json.loads(agent.own_runtime or "")["digests"] == {"/a": [DIGEST]}


@given(
    st.dictionaries(
        st.sampled_from(sorted(row())),
        st.one_of(st.none(), st.integers(), st.text(max_size=20), st.binary(max_size=20), st.floats()),
        max_size=4,
    )
)
def test_no_row_stops_the_others(changes: dict[str, object]) -> None:
    proposal = convert({**row(), **changes}, around())
    assert (proposal.agent is None) is (proposal.item.fate is Fate.NOT_TAKEN)


# Policies


def test_a_policy_that_can_be_read_is_kept_to_the_byte() -> None:
    spaced = POLICY.replace(", ", " ,  ")
    assert convert_runtime(spaced) == (spaced, True, ())
    assert convert_runtime(None) == convert_runtime(" ") == (None, False, ())


@pytest.mark.parametrize(
    "text",
    [
        {"whitelist": {"/a": [DIGEST]}, "exclude": []},
        {"allowlist": {"/a": [DIGEST.upper()]}},
        {"allowlist": {"meta": {"version": 5}, "release": 0, "hashes": {"/a": [DIGEST]}}, "exclude": None},
        {"allowlist": {"hashes": {"/a": [DIGEST], "/b": []}, "ima": {"ignored_keyrings": []}}},
    ],
)
def test_lists_of_all_times_become_runtime_policies(text: object) -> None:
    found, demands_ima, remarks = convert_runtime(json.dumps(text))
    assert demands_ima
    assert remarks
    assert json.loads(found or "")["digests"] == {"/a": [DIGEST]}


def test_an_empty_list_is_a_policy_that_allows_nothing() -> None:
    found, demands_ima, _ = convert_runtime('{"allowlist": {"hashes": {}}, "exclude": []}')
    assert json.loads(found or "")["digests"] == {}
    assert demands_ima


def test_small_slips_are_mended_and_said() -> None:
    slips = {"meta": {"version": 1, "generator": 0}, "digests": {"/a": [DIGEST.upper()]}, "excludes": None}
    text, _, remarks = convert_runtime(json.dumps(slips))
    assert json.loads(text or "")["digests"] == {"/a": [DIGEST]}
    assert "mended" in remarks[0]


@pytest.mark.parametrize("text", ['{"meta": ', "[]", '"x"', "1", '{"digests": 7}', '{"excludes": ["("]}'])
def test_what_is_no_policy_is_not_taken(text: str) -> None:
    policy = runtime_policy({"id": 1, "name": "x", "ima_policy": text})
    assert (policy.text, policy.problem is None) == (None, False)


@given(st.text(max_size=40), st.one_of(st.text(max_size=60), st.binary(max_size=20), st.none()))
def test_no_policy_stops_the_others(name: str, text: object) -> None:
    for policy in (
        runtime_policy({"id": 1, "name": name, "ima_policy": text}),
        boot_policy({"id": 1, "name": name, "mb_policy": text}, compile_boot),
    ):
        assert policy.problem is not None or not re.search(r"[\x00-\x1f\x7f/]", policy.name)


# What is here already


def plan(*proposals: AgentProposal, **policies: str) -> Plan:
    named = {(RUNTIME, name): OldPolicy(name, text) for name, text in policies.items()}
    return Plan("s", "r", named, proposals)


def test_policies_come_before_the_agents_that_use_them() -> None:
    _, proposal = taken()
    news, report = settle(plan(proposal, fleet=POLICY), Here())
    assert news.policies == {(RUNTIME, "fleet"): (POLICY, None)}
    assert [agent.enrolment.agent_id for agent in news.agents] == ["agent-1"]
    assert {item.fate for item in report.items} == {Fate.TAKEN}


def test_an_own_policy_goes_where_its_agent_goes() -> None:
    _, proposal = taken(ima_policy_id=2)
    news, _ = settle(plan(proposal, **{"agent-1": POLICY}), Here())
    assert news.policies == {(RUNTIME, "agent-1"): (POLICY, None)}
    lost = convert(row(ima_policy_id=2, ip=""), around())
    news, report = settle(plan(lost, **{"agent-1": POLICY}), Here())
    assert not news.policies, "it would be in the way when the agent is added anew"
    assert "which is not taken" in str(report.items[0])


def test_a_policy_that_is_borrowed_from_an_agent_is_there_for_both() -> None:
    borrowed = OldPolicy("agent-2", POLICY)
    _, borrower = taken(around({5: borrowed}), ima_policy_id=5)
    _, owner = taken(around({5: borrowed}), agent_id="agent-2", ima_policy_id=5)
    news, _ = settle(plan(borrower, owner, **{"agent-2": POLICY}), Here())
    assert len(news.agents) == 2
    _, owner = taken(around({5: borrowed}), agent_id="agent-2", tpm_policy='{"mask": "0x0"}')
    news, report = settle(plan(borrower, owner, **{"agent-2": POLICY}), Here())
    assert [agent.enrolment.agent_id for agent in news.agents] == ["agent-2"]
    assert any("is that of another agent" in str(item) for item in report.items)


def test_what_is_here_is_never_replaced() -> None:
    _, proposal = taken()
    here = Here({"agent-1": AK}, {(RUNTIME, "fleet"): "another hash"})
    news, report = settle(plan(proposal, fleet=POLICY), here)
    assert (news.agents, news.policies) == ((), {})
    assert {item.fate for item in report.items} == {Fate.PRESENT}
    assert "another one of this name is here" in report.text()
    news, report = settle(plan(proposal, fleet=POLICY), Here({}, {(RUNTIME, "fleet"): "another hash"}))
    assert len(news.agents) == 1
    assert "is held to the runtime policy 'fleet' that is here" in report.text()


def test_an_own_boot_policy_in_the_way_keeps_the_agent_out() -> None:
    _, proposal = taken(mb_refstate='{"a": 1}')
    news, report = settle(
        plan(proposal, fleet=POLICY), Here({}, {(MEASURED_BOOT, "agent-1"): "another hash"})
    )
    assert not news.agents
    (item,) = [item for item in report.items if item.kind is ItemKind.AGENT]
    assert "delete it and import again" in str(item)
