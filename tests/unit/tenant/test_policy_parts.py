"""Names of several runtime policies, with the times at which they end."""

import pytest

from keylime_tenant.arguments import parse_arguments
from keylime_tenant.policy_parts import TimedName, lasting_name, parse_parts

NOW = 1_800_000_000.5


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("old", TimedName("old")),
        ("old@+30m", TimedName("old", 1_800_001_800)),
        ("old@+12h", TimedName("old", 1_800_043_200)),
        ("a@b@+7d", TimedName("a@b", 1_800_604_800)),
        ("old@2030-12-31", TimedName("old", 1_924_905_600)),
        ("old@2030-12-31T18:00Z", TimedName("old", 1_924_970_400)),
        ("old@2030-12-31T18:00+02:00", TimedName("old", 1_924_963_200)),
        ("old@2030-13-31", TimedName("old@2030-13-31")),
        ("web@1", TimedName("web@1")),
        ("@+7d", TimedName("@+7d")),
    ],
)
def test_a_name_may_say_when_it_ends(text: str, part: TimedName) -> None:
    assert parse_parts((text, "new"), NOW) == (part, TimedName("new"))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("a@+1d", "b@+2d"), "must not end"),
        (("a", "a@+1d"), "named twice"),
        (("a@2020-01-01", "b"), "a would have ended already"),
    ],
)
def test_what_cannot_hold_together_is_said(names: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_parts(names, NOW)


def test_verifiers_of_before_are_told_the_last_that_stays() -> None:
    assert lasting_name([TimedName("a"), TimedName("b"), TimedName("c", 1)]) == "b"


def test_one_name_is_taken_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    flag = "--runtime-policy-name"
    assert parse_arguments(["add", flag, "web@2030-12-31"]).policy_name == "web@2030-12-31"
    several = parse_arguments(["update", flag, "old@+1h", flag, "new"])
    assert (several.policy_name, [one.name for one in several.runtime_policies]) == ("new", ["old", "new"])
    for wrong in (
        ["add", flag, "a@+1h", flag, "b@+1h"],
        ["showruntimepolicy", flag, "a", flag, "b"],
        ["add", flag, "a", flag, "b", "--runtime-policy", "file"],
    ):
        with pytest.raises(SystemExit, match="2"):
            parse_arguments(wrong)
        (line,) = capsys.readouterr().err.splitlines()
        assert flag in line
