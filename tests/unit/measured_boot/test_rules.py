import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.findings.finding import JsonValue
from keylime.measured_boot import rules
from keylime.measured_boot.document import event_log_document
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.rules import Test
from tests.captures import capture

X509 = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
HASH = "c1c41626-504c-4092-aca9-41f936934328"
KEY = {"SignatureOwner": "me", "SignatureData": "0xab"}
OTHER = {"SignatureOwner": "me", "SignatureData": "0xcd"}


YES, NO = rules.AcceptAll(), rules.RejectAll("no")


def shown(*keys: dict[str, str]) -> list[JsonValue]:
    return [{**key, "SignatureData": key["SignatureData"].removeprefix("0x")} for key in keys]


def signatures(kind: str, *keys: dict[str, str]) -> dict[str, JsonValue]:
    return {"SignatureType": kind, "Keys": shown(*keys)}


def event(**digests: str) -> dict[str, JsonValue]:
    return {"Digests": [{"AlgorithmId": name, "Digest": value} for name, value in digests.items()]}


def variable(guid: str, name: str, value: JsonValue) -> dict[str, JsonValue]:
    return {"Event": {"VariableName": guid, "UnicodeName": name, "VariableData": value}}


def dispatcher() -> rules.Dispatcher:
    test = rules.Dispatcher("PCRIndex", "EventType")
    test.register((7, "EV_SEPARATOR"), rules.AcceptAll())
    return test


def refusing_dispatcher() -> rules.Dispatcher:
    test = rules.Dispatcher("PCRIndex")
    test.register((7,), NO)
    return test


def variables() -> rules.VariableDispatch:
    test = rules.VariableDispatch()
    test.register("guid", "PK", rules.IntEqual(1))
    return test


PASSING: list[tuple[Test, JsonValue]] = [
    (YES, None),
    (rules.And(), 1),
    (rules.And(YES, YES), 1),
    (rules.Or(NO, YES), 1),
    (dispatcher(), {"PCRIndex": 7, "EventType": "EV_SEPARATOR"}),
    (rules.FieldTest("a", rules.IntEqual(1)), {"a": 1}),
    (rules.FieldsTest(a=rules.IntEqual(1), b=rules.StringEqual("x")), {"a": 1, "b": "x"}),
    (rules.IterateTest(rules.IntEqual(1)), [1, 1]),
    (rules.IterateTest(NO), []),
    (rules.TupleTest(rules.IntEqual(1), rules.IntEqual(2)), [1, 2]),
    (rules.TupleTest(rules.IntEqual(1), YES, pad=True), [1]),
    (rules.OnceTest(YES), 1),
    (rules.RegExp("a.*c", re.DOTALL), "a\nc"),
    (rules.DigestTest({"sha256": "0xab"}), event(sha1="00", sha256="ab")),
    (rules.DigestsTest([{"sha256": "0xcd"}, {"sha256": "0xab"}]), event(sha256="ab")),
    (rules.VariableTest("guid", "PK", rules.IntEqual(1)), variable("guid", "PK", 1)),
    (rules.VariableTest("guid", re.compile("Boot[0-9]+"), YES), variable("guid", "Boot01", 1)),
    (variables(), variable("guid", "PK", 1)),
    (rules.SignatureTest("me", "0xab"), shown(KEY)[0]),
    (rules.SignatureSetMember([OTHER, KEY]), shown(KEY)[0]),
    (rules.KeySubset(X509, [KEY, OTHER]), [signatures(X509, KEY)]),
    (rules.KeySubset(X509, []), []),
    (rules.KeySubsetMulti([X509, HASH], [KEY]), [signatures(X509, KEY), signatures(HASH, KEY)]),
    (rules.KeySuperset(HASH, [KEY]), [signatures(HASH, OTHER, KEY)]),
]

FAILING: list[tuple[Test, JsonValue, str]] = [
    (NO, None, "no"),
    (rules.And(YES, NO, rules.RejectAll("never reached")), 1, "no"),
    (rules.Or(), 1, "no alternative"),
    (rules.Or(NO, rules.RejectAll("nor this")), 1, "no | nor this"),
    (dispatcher(), {"PCRIndex": 6, "EventType": "EV_SEPARATOR"}, "PCRIndex 6, EventType 'EV_SEPARATOR'"),
    (dispatcher(), {"PCRIndex": 7}, "has no EventType"),
    (dispatcher(), {"PCRIndex": 7, "EventType": ["EV_SEPARATOR"]}, "not expected"),
    (dispatcher(), [7], "not an object"),
    (refusing_dispatcher(), {"PCRIndex": 7}, "PCRIndex 7: no"),
    (rules.FieldTest("a", YES), {}, "has no a"),
    (rules.FieldTest("a", YES), 1, "not an object"),
    (rules.FieldsTest(a=YES, b=NO), {"a": 1, "b": 2}, "b no"),
    (rules.IterateTest(rules.IntEqual(1)), [1, 2], "[1] is 2, expected 1"),
    (rules.IterateTest(YES), None, "not a list"),
    (rules.TupleTest(YES, YES), [1], "1 elements, expected 2"),
    (rules.TupleTest(YES, pad=True), [1, 2], "2 elements, expected 1"),
    (rules.TupleTest(YES, rules.IntEqual(1), pad=True), [1], "[1] is not a number"),
    (rules.TupleTest(YES), "x", "not a list"),
    (rules.IntEqual(1), True, "not a number"),
    (rules.IntEqual(1), "1", "not a number"),
    (rules.StringEqual("1"), 1, "not a text"),
    (rules.StringEqual("a"), "b", "'b', expected 'a'"),
    (rules.RegExp("a"), "ab", "expected 'a'"),
    (rules.RegExp("a"), 1, "not a text"),
    (rules.DigestTest({"sha256": "0xab"}), event(sha1="ab", sha256="cd"), "none of the allowed"),
    (rules.DigestsTest([]), event(sha256="ab"), "none of the allowed"),
    (rules.DigestTest({"sha256": "0xab"}), {}, "has no Digests"),
    (rules.DigestTest({"sha256": "0xab"}), {"Digests": ["ab"]}, "none of the allowed"),
    *(
        (rules.DigestTest({"sha256": "0xab"}), {"Digests": [odd]}, "none of the allowed")
        for odd in (
            {"AlgorithmId": ["sha256"], "Digest": "ab"},
            {"AlgorithmId": "sha256", "Digest": ["ab"]},
        )
    ),
    (rules.VariableTest("guid", "PK", YES), variable("guid", "KEK", 1), "UnicodeName"),
    (rules.VariableTest("guid", "PK", YES), variable("other", "PK", 1), "VariableName"),
    (rules.VariableTest("guid", "PK", NO), variable("guid", "PK", 1), "VariableData no"),
    (variables(), variable("guid", "KEK", 1), "not expected"),
    (rules.SignatureTest("me", "0xab"), shown(OTHER)[0], "another signature"),
    (rules.SignatureSetMember([KEY]), shown(OTHER)[0], "not among"),
    (rules.SignatureSetMember([KEY]), "ab", "not a signature"),
    (rules.KeySubset(X509, [KEY]), [signatures(HASH, KEY)], HASH),
    (rules.KeySubset(X509, [KEY]), [signatures(X509, KEY, OTHER)], "not among"),
    (rules.KeySubset(X509, [KEY]), None, "not a list"),
    (rules.KeySubset(X509, [KEY]), [{"SignatureType": [X509], "Keys": []}], "SignatureType"),
    (
        rules.KeySubset(X509, [KEY]),
        [{"SignatureType": X509, "Keys": [{"SignatureOwner": ["me"], "SignatureData": "ab"}]}],
        "not a signature",
    ),
    (
        rules.KeySubset(X509, [KEY]),
        [{"SignatureType": X509, "Keys": [{"SignatureOwner": "me", "SignatureData": ["ab"]}]}],
        "not a signature",
    ),
    (rules.KeySuperset(HASH, [KEY]), [signatures(HASH, OTHER)], "lacks 1"),
    (rules.KeySuperset(HASH, [KEY]), [signatures(X509, KEY)], X509),
    (rules.KeySuperset(HASH, []), [], "0 signature lists"),
    (rules.KeySuperset(HASH, [KEY]), [signatures(HASH, KEY), signatures(HASH, KEY)], "2 signature lists"),
    (rules.KeySuperset(HASH, []), None, "not a list"),
    (rules.KeySuperset(HASH, []), [{"SignatureType": HASH}], "no Keys"),
]


@pytest.mark.parametrize(("test", "subject"), PASSING)
def test_what_fits_passes(test: Test, subject: JsonValue) -> None:
    assert test.why_not({}, subject) == ""


@pytest.mark.parametrize(("test", "subject", "reason"), FAILING)
def test_what_does_not_fit_fails_with_its_reason(test: Test, subject: JsonValue, reason: str) -> None:
    assert reason in test.why_not({}, subject)


def test_once_is_once_for_each_evaluation() -> None:
    test = rules.IterateTest(rules.OnceTest(YES))
    assert test.why_not({}, [1]) == ""
    assert test.why_not({}, [1]) == ""
    assert "more than once" in test.why_not({}, [1, 2])


def test_values_are_collected_and_tested_at_the_end() -> None:
    end = rules.DelayToFields(
        rules.FieldsTest(a=rules.TupleTest(rules.IntEqual(1)), b=rules.TupleTest()), "a", "b"
    )
    test = rules.And(rules.IterateTest(end.collect("a")), end)
    assert test.why_not({}, [1]) == ""
    assert "expected 1" in test.why_not({}, [1, 1])
    assert "0 elements" in test.why_not({}, [])
    with pytest.raises(ValueError, match="none of"):
        end.collect("c")


def test_mistakes_in_a_policy_are_found_when_it_is_built() -> None:
    test = dispatcher()
    with pytest.raises(ValueError, match="has a test already"):
        test.register((7, "EV_SEPARATOR"), YES)
    with pytest.raises(ValueError, match="expected 2 values"):
        test.register((7,), YES)
    with pytest.raises(ValueError, match="needs a reason"):
        rules.RejectAll("")


def test_a_policy_made_of_them_judges_a_genuine_log() -> None:
    log = event_log_document(parse_event_log(capture("grub-secureboot").boot_log))
    secure_boot = rules.FieldTest("Enabled", rules.StringEqual("Yes"))
    global_variable = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

    def policy(enabled: Test) -> Test:
        is_secure_boot = rules.VariableTest(global_variable, "SecureBoot", enabled)
        is_other = rules.VariableTest(global_variable, re.compile("PK|KEK"), YES)
        rest = rules.FieldTest("EventNum", rules.Or(*(rules.IntEqual(number) for number in range(7, 56))))
        early = rules.FieldTest("EventNum", rules.Or(*(rules.IntEqual(number) for number in range(4))))
        return rules.FieldTest("events", rules.IterateTest(rules.Or(early, rest, is_secure_boot, is_other)))

    assert policy(secure_boot).why_not({}, log) == ""
    assert "events [4]" in policy(NO).why_not({}, log)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Event", "Digests", "Keys", "PCRIndex", "EventType", "a", "VariableName", "UnicodeName"]
            )
            | st.text(max_size=2),
            children,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(subject=JSON)
def test_no_json_value_makes_a_test_raise(subject: JsonValue) -> None:
    for test in [*(test for test, _ in PASSING), *(test for test, _, _ in FAILING)]:
        assert isinstance(test.why_not({}, subject), str)
