import pytest

from keylime_agent.machine import later_boot


@pytest.mark.parametrize(
    ("boottime", "before", "told"),
    [(1000, 0, 1000), (1000, 900, 1000), (1000, 1000, 1030), (5, 1000, 1030), (0, 0, 0)],
)
def test_a_later_boot_is_later_whatever_the_clock_says(boottime: int, before: int, told: int) -> None:
    assert later_boot(boottime, before) == told
