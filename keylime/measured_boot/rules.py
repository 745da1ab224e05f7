"""Building blocks for operators' measured-boot policies: small tests over the document of an event log.

A test answers `why_not(state, subject)`: the empty text when `subject` passes, else the reason. `state` is
one fresh dictionary for each evaluation, in which tests that look at more than one event keep what they
saw. Tests themselves are immutable once built and can be shared. Nothing here raises for any JSON value as
subject.

A replay proves the digests of events, not their data. Where a digest covers the data (`binding`), a policy
that rests on them should also ask that the digest be right; our own policies always do.
"""

import abc
import re
from collections.abc import Hashable, Iterable, Mapping, MutableMapping
from typing import TypeAlias

from keylime.findings.finding import JsonValue

State: TypeAlias = MutableMapping[Hashable, object]
_SCALARS = (str, int, float, type(None))

Digest: TypeAlias = Mapping[str, str]  # algorithm name -> "0x" and lower-case hex


class Test(abc.ABC):
    """A demand on a JSON value."""

    __test__ = False  # not a test of this project, whatever pytest thinks of the name

    @abc.abstractmethod
    def why_not(self, state: State, subject: JsonValue) -> str:
        """The empty text when `subject` passes, else the reason why it does not."""


class AcceptAll(Test):
    """Passes always."""

    def why_not(self, state: State, subject: JsonValue) -> str:
        """Nothing against anything."""
        return ""


class RejectAll(Test):
    """Passes never; `why` is the reason."""

    def __init__(self, why: str) -> None:
        if not why:
            raise ValueError("a rejection needs a reason")
        self._why = why

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The reason given."""
        return self._why


class And(Test):
    """Passes when all `tests` pass; they are tried in order up to the first failure."""

    def __init__(self, *tests: Test) -> None:
        self._tests = tests

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The reason of the first test that fails."""
        for test in self._tests:
            if reason := test.why_not(state, subject):
                return reason
        return ""


class Or(Test):
    """Passes when one of `tests` passes; tried in order up to the first success. Without tests it fails."""

    def __init__(self, *tests: Test) -> None:
        self._tests = tests

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The reasons of all tests."""
        reasons = []
        for test in self._tests:
            reason = test.why_not(state, subject)
            if not reason:
                return ""
            reasons.append(reason)
        return f"[{' | '.join(reasons)}]" if reasons else "no alternative is allowed"


class Dispatcher(Test):
    """Picks the test for an object by the values of some of its fields; values without a test fail."""

    def __init__(self, *keys: str) -> None:
        self._keys = keys
        self._tests: dict[tuple[JsonValue, ...], Test] = {}

    def register(self, values: tuple[JsonValue, ...], test: Test) -> None:
        """Uses `test` for objects with these values. Raises ValueError for a second test or a wrong count."""
        if len(values) != len(self._keys):
            raise ValueError(f"expected {len(self._keys)} values for {self._keys}, got {values}")
        if values in self._tests:
            raise ValueError(f"{values} has a test already")
        self._tests[values] = test

    def why_not(self, state: State, subject: JsonValue) -> str:
        """What the test for these values says."""
        if not isinstance(subject, Mapping):
            return "is not an object"
        missing = [key for key in self._keys if key not in subject]
        if missing:
            return f"has no {missing[0]}"
        values = tuple(subject[key] for key in self._keys)
        if not all(isinstance(value, _SCALARS) for value in values):
            return f"{self._describe(values)} is not expected"
        test = self._tests.get(values)
        if test is None:
            return f"{self._describe(values)} is not expected"
        reason = test.why_not(state, subject)
        return f"{self._describe(values)}: {reason}" if reason else ""

    def _describe(self, values: tuple[JsonValue, ...]) -> str:
        return ", ".join(f"{key} {value!r}" for key, value in zip(self._keys, values, strict=True))


class FieldTest(Test):
    """Passes for an object whose field `name` passes `test`."""

    def __init__(self, name: str, test: Test) -> None:
        self._name = name
        self._test = test

    def why_not(self, state: State, subject: JsonValue) -> str:
        """What the test says of the field."""
        if not isinstance(subject, Mapping):
            return "is not an object"
        if self._name not in subject:
            return f"has no {self._name}"
        reason = self._test.why_not(state, subject[self._name])
        return f"{self._name} {reason}" if reason else ""


class FieldsTest(And):
    """Passes for an object all of whose named fields pass their tests."""

    def __init__(self, **tests: Test) -> None:
        super().__init__(*(FieldTest(name, test) for name, test in tests.items()))


class IterateTest(Test):
    """Passes for a list all of whose elements pass `test`; also for the empty list."""

    def __init__(self, test: Test) -> None:
        self._test = test

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The reason for the first element that fails, with its position."""
        if not isinstance(subject, list | tuple):
            return "is not a list"
        for position, element in enumerate(subject):
            if reason := self._test.why_not(state, element):
                return f"[{position}] {reason}"
        return ""


class TupleTest(Test):
    """Passes for a list that has one element for each of `tests`, each passing its own.

    With `pad`, a shorter list is filled up with null.
    """

    def __init__(self, *tests: Test, pad: bool = False) -> None:
        self._tests = tests
        self._pad = pad

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The reason for the first element that fails, with its position."""
        if not isinstance(subject, list | tuple):
            return "is not a list"
        missing = len(self._tests) - len(subject)
        if missing < 0 or (missing > 0 and not self._pad):
            return f"has {len(subject)} elements, expected {len(self._tests)}"
        elements = [*subject, *[None] * missing]
        for position, (test, element) in enumerate(zip(self._tests, elements, strict=True)):
            if reason := test.why_not(state, element):
                return f"[{position}] {reason}"
        return ""


class DelayToFields(Test):
    """Collects values while a list is walked, and tests the collection afterwards.

    `collect(name)` is a test that passes and remembers its subject; this object is the test for the end: it
    applies `test` to an object with one list for each name, and ignores its own subject. Use both within
    one `And`.
    """

    def __init__(self, test: Test, *names: str) -> None:
        self._test = test
        self._names = names

    def collect(self, name: str) -> Test:
        """A test that adds its subject to the list `name`. Raises ValueError for a name not announced."""
        if name not in self._names:
            raise ValueError(f"{name} is none of {self._names}")
        return _Collect(self, name)

    def collection(self, state: State) -> dict[str, list[JsonValue]]:
        """What was collected so far in this evaluation."""
        collected = state.setdefault(self, {name: [] for name in self._names})
        return collected  # type: ignore[return-value]  # only this class uses itself as a key

    def why_not(self, state: State, subject: JsonValue) -> str:
        """What the test says of the collection."""
        return self._test.why_not(state, self.collection(state))


class _Collect(Test):
    def __init__(self, delay: DelayToFields, name: str) -> None:
        self._delay = delay
        self._name = name

    def why_not(self, state: State, subject: JsonValue) -> str:
        self._delay.collection(state)[self._name].append(subject)
        return ""


class OnceTest(Test):
    """Passes as `test` does on its first use in an evaluation; further uses fail."""

    def __init__(self, test: Test) -> None:
        self._test = test

    def why_not(self, state: State, subject: JsonValue) -> str:
        """What the test says, or that it was used before."""
        if self in state:
            return "occurs more than once"
        state[self] = True
        return self._test.why_not(state, subject)


class IntEqual(Test):
    """Passes for the number `expected`."""

    def __init__(self, expected: int) -> None:
        self._expected = expected

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The difference."""
        if not isinstance(subject, int) or isinstance(subject, bool):
            return "is not a number"
        return "" if subject == self._expected else f"is {subject}, expected {self._expected}"


class StringEqual(Test):
    """Passes for the text `expected`."""

    def __init__(self, expected: str) -> None:
        self._expected = expected

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The difference."""
        if not isinstance(subject, str):
            return "is not a text"
        return "" if subject == self._expected else f"is {subject!r}, expected {self._expected!r}"


class RegExp(Test):
    """Passes for a text that the regular expression matches from its first to its last character."""

    def __init__(self, pattern: str, flags: int = 0) -> None:
        self._pattern = re.compile(pattern, flags)

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The difference."""
        if not isinstance(subject, str):
            return "is not a text"
        return (
            "" if self._pattern.fullmatch(subject) else f"is {subject!r}, expected {self._pattern.pattern!r}"
        )


class DigestsTest(Test):
    """Passes for an event one of whose digests is among `good` for its algorithm."""

    def __init__(self, good: Iterable[Digest]) -> None:
        self._good: dict[str, set[str]] = {}
        for digest in good:
            for algorithm, value in digest.items():
                self._good.setdefault(algorithm, set()).add(value.removeprefix("0x").lower())

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The digests that are not listed."""
        digests = subject.get("Digests") if isinstance(subject, Mapping) else None
        if not isinstance(digests, list | tuple):
            return "has no Digests"
        for digest in digests:
            if isinstance(digest, Mapping) and self._is_good(digest.get("AlgorithmId"), digest.get("Digest")):
                return ""
        return f"has none of the allowed digests, but {digests}"

    def _is_good(self, algorithm: JsonValue, value: JsonValue) -> bool:
        return (
            isinstance(algorithm, str) and isinstance(value, str) and value in self._good.get(algorithm, ())
        )


class DigestTest(DigestsTest):
    """Passes for an event one of whose digests equals that of `good`."""

    def __init__(self, good: Digest) -> None:
        super().__init__([good])


class VariableTest(Test):
    """Passes for an event about the UEFI variable `guid`, `name` (text or pattern) and its data."""

    def __init__(self, guid: str, name: str | re.Pattern[str], test: Test) -> None:
        name_test = StringEqual(name) if isinstance(name, str) else RegExp(name.pattern, name.flags)
        self._test = FieldTest(
            "Event",
            FieldsTest(VariableName=StringEqual(guid), UnicodeName=name_test, VariableData=test),
        )

    def why_not(self, state: State, subject: JsonValue) -> str:
        """What differs first: GUID, name or data."""
        return self._test.why_not(state, subject)


class VariableDispatch(Test):
    """Picks the test for an event about a UEFI variable by the variable's GUID and name."""

    def __init__(self) -> None:
        self._dispatcher = Dispatcher("VariableName", "UnicodeName")
        self._test = FieldTest("Event", self._dispatcher)

    def register(self, guid: str, name: str, test: Test) -> None:
        """Uses `test` for the data of this variable. Raises ValueError for a second test."""
        self._dispatcher.register((guid, name), FieldTest("VariableData", test))

    def why_not(self, state: State, subject: JsonValue) -> str:
        """What the variable's test says."""
        return self._test.why_not(state, subject)


class SignatureTest(Test):
    """Passes for the signature with this owner (GUID text) and data ("0x" and hex)."""

    def __init__(self, owner: str, data: str) -> None:
        self._expected = (owner, data.removeprefix("0x"))

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The difference."""
        return "" if _signature(subject) == self._expected else "is another signature"


class SignatureSetMember(Test):
    """Passes for a signature that is one of `keys` (SignatureOwner, SignatureData with "0x")."""

    def __init__(self, keys: Iterable[Mapping[str, str]]) -> None:
        self._keys = _key_set(keys)

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The signature's owner when it is not listed."""
        signature = _signature(subject)
        if signature is None:
            return "is not a signature"
        return "" if signature in self._keys else f"of owner {signature[0]} is not among the allowed keys"


class KeySubsetMulti(Test):
    """Passes when every signature list has one of `types` (GUID texts) and only keys that are listed."""

    def __init__(self, types: Iterable[str], keys: Iterable[Mapping[str, str]]) -> None:
        self._test = IterateTest(
            And(
                FieldTest("SignatureType", _OneOf(frozenset(types))),
                FieldTest("Keys", IterateTest(SignatureSetMember(keys))),
            )
        )

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The first list or key that is not allowed."""
        return self._test.why_not(state, subject)


class KeySubset(KeySubsetMulti):
    """Passes when every signature list has the type `kind` (GUID text) and only keys that are listed."""

    def __init__(self, kind: str, keys: Iterable[Mapping[str, str]]) -> None:
        super().__init__([kind], keys)


class KeySuperset(Test):
    """Passes for exactly one signature list, of type `kind` (GUID text), that has at least all `keys`."""

    def __init__(self, kind: str, keys: Iterable[Mapping[str, str]]) -> None:
        self._kind = kind
        self._keys = _key_set(keys)

    def why_not(self, state: State, subject: JsonValue) -> str:
        """The count of keys that are missing, or what is wrong with the list."""
        if not isinstance(subject, list | tuple):
            return "is not a list"
        if len(subject) != 1 or not isinstance(subject[0], Mapping):
            return f"has {len(subject)} signature lists, expected one"
        if subject[0].get("SignatureType") != self._kind:
            return f"has signatures of type {subject[0].get('SignatureType')}, expected {self._kind}"
        keys = subject[0].get("Keys")
        if not isinstance(keys, list | tuple):
            return "has no Keys"
        missing = self._keys - {_signature(key) for key in keys}
        return f"lacks {len(missing)} of the keys that must be present" if missing else ""


class _OneOf(Test):
    def __init__(self, good: frozenset[str]) -> None:
        self._good = good

    def why_not(self, state: State, subject: JsonValue) -> str:
        return "" if isinstance(subject, str) and subject in self._good else f"is {subject!r}"


def _signature(subject: JsonValue) -> tuple[str, str] | None:
    if not isinstance(subject, Mapping):
        return None
    owner, data = subject.get("SignatureOwner"), subject.get("SignatureData")
    if not isinstance(owner, str) or not isinstance(data, str):
        return None
    return owner, data


def _key_set(keys: Iterable[Mapping[str, str]]) -> frozenset[tuple[str, str] | None]:
    return frozenset((key["SignatureOwner"], key["SignatureData"].removeprefix("0x")) for key in keys)
