import sys
import types
from collections.abc import Iterator

import pytest

from keylime.errors import ConfigError, PolicyError
from keylime.findings.finding import JsonValue
from keylime.hashes import HashAlgorithm
from keylime.measured_boot import rules
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.policies import (
    AcceptAllPolicy,
    BootPolicy,
    DocumentRules,
    Objection,
    PolicyRegistry,
    load_policy_modules,
)
from keylime.measured_boot.rules import Test
from tests.captures import capture

LOG = parse_event_log(capture("grub-secureboot").boot_log)


class CountEvents(BootPolicy):
    """Wants as many events as the reference state says."""

    def get_relevant_pcrs(self) -> frozenset[int]:
        return frozenset({0, 7})

    def refstate_to_test(self, refstate: JsonValue) -> Test:
        if not isinstance(refstate, dict):
            raise TypeError("expected an object")
        return rules.FieldTest("events", rules.TupleTest(*[rules.AcceptAll()] * int(refstate["events"])))


class OnlyBank(CountEvents):
    def evaluate(self, refstate: JsonValue, eventlog: JsonValue) -> str:
        assert isinstance(eventlog, dict)
        return ",".join(eventlog["pcrs"])


class Broken(CountEvents):
    def evaluate(self, refstate: JsonValue, eventlog: JsonValue) -> str:
        raise LookupError("no such key")


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    made = types.ModuleType("operators_policies")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def judge(policy: BootPolicy, refstate: JsonValue) -> tuple[Objection, ...]:
    return DocumentRules(policy).compile(refstate)(LOG, HashAlgorithm.SHA256)


def test_an_operators_policy_judges_the_document() -> None:
    assert judge(CountEvents(), {"events": 56}) == ()
    assert judge(CountEvents(), {"events": 57}) == (Objection("events has 56 elements, expected 57"),)


def test_an_operators_policy_sees_only_the_bank_that_was_quoted() -> None:
    assert judge(OnlyBank(), {"events": 0}) == (Objection("sha256"),)


def test_an_exception_in_an_operators_policy_rejects_the_log() -> None:
    (objection,) = judge(Broken(), {"events": 0})
    assert objection.reason == "policy evaluation failed: LookupError: no such key"


def test_a_reference_state_that_a_policy_refuses_is_a_policy_error() -> None:
    with pytest.raises(PolicyError, match="expected an object"):
        judge(CountEvents(), ["events"])


def test_policies_are_registered_and_forgotten_by_name() -> None:
    registry = PolicyRegistry()
    assert registry.get_policy_names() == ("accept-all", "reject-all")
    policy = CountEvents()
    registry.register("count", policy)
    assert registry.get_policy("count") is policy
    assert registry.rules("count").get_relevant_pcrs() == {0, 7}
    registry.unregister("count")
    assert registry.get_policy("count") is None
    with pytest.raises(KeyError):
        registry.unregister("count")


@pytest.mark.parametrize("name", ["reject-all", "nobody"])
def test_reject_all_and_unknown_names_reject_every_log(name: str) -> None:
    assert PolicyRegistry().rules(name).compile({"a": 1})(LOG, HashAlgorithm.SHA256) == (
        Objection("reject all"),
    )


def test_accept_all_accepts_every_log() -> None:
    assert judge(AcceptAllPolicy(), {"a": 1}) == ()


def test_a_module_registers_its_policies(module: types.ModuleType) -> None:
    def register_policies(registry: PolicyRegistry) -> None:
        registry.register("count", CountEvents())

    module.register_policies = register_policies  # type: ignore[attr-defined]  # a module made by hand
    registry = PolicyRegistry()
    load_policy_modules([module.__name__], registry)
    assert "count" in registry.get_policy_names()


def test_a_module_that_cannot_be_used_stops_the_start(module: types.ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"'no_such_module_here'.*ModuleNotFoundError"):
        load_policy_modules(["no_such_module_here"], PolicyRegistry())
    with pytest.raises(ConfigError, match=r"'operators_policies'.*register_policies"):
        load_policy_modules([module.__name__], PolicyRegistry())
