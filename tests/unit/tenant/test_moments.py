"""Times in the past, as they are typed."""

import pytest

from keylime_tenant.moments import parse_since

NOW = 1_700_000_000.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", 1_700_000_000 - 1800),
        ("12h", 1_700_000_000 - 43_200),
        ("7d", 1_700_000_000 - 604_800),
        ("999999d", 0),
        ("2023-11-14", 1_699_920_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000),
    ],
)
def test_ages_and_dates(text: str, expected: int) -> None:
    assert parse_since(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "5", "5x", "-5m", "2023-13-01", "20231114", "2023-11-14T25:00"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_since(text, NOW)
