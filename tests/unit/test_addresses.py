import pytest

from keylime.addresses import means_own_host


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.4.0.9",
        "::1",
        "[::1]",
        "0.0.0.0",  # noqa: S104
        "::",
        "::ffff:127.0.0.1",
        "localhost",
        "Localhost.",
    ],
)
def test_loopback_is_whoever_says_it(host: str) -> None:
    assert means_own_host(host)


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "fd00::1", "control.example", "localhost.example", "", "128.0.0.1"]
)
def test_others_are_found_by_their_address(host: str) -> None:
    assert not means_own_host(host)
