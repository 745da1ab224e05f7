import pytest

from keylime_tenant.config import Address, Patience


@pytest.mark.parametrize(
    ("patience", "delays"),
    [
        (Patience(interval_s=2, exponential=True, max_retries=5), [2, 4, 8, 16, 32]),
        (Patience(interval_s=2, exponential=False, max_retries=3), [2, 2, 2]),
        (Patience(interval_s=1.2, exponential=True, max_retries=3), [1.2, 1.44, 1.728]),
        (Patience(interval_s=0.5, exponential=True, max_retries=2), [0.5, 0.5]),
        (Patience(interval_s=2, exponential=True, max_retries=0), []),
    ],
)
def test_waits_grow_as_the_options_say(patience: Patience, delays: list[float]) -> None:
    assert list(patience.delays()) == pytest.approx(delays)


def test_ipv6_addresses_are_bracketed_in_urls() -> None:
    assert Address("2001:db8::1", 8881).url() == "https://[2001:db8::1]:8881"
    assert Address("cv.example", 8881).url() == "https://cv.example:8881"
