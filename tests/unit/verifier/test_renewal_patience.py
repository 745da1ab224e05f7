import pytest

from keylime_verifier.sharing.renewal_patience import RenewalPatience


@pytest.mark.parametrize(
    ("lease_s", "limits"),
    [
        (3.0, [2.0, 2.0, 3.0, 4.5, 6.0, 6.0]),
        (10.0, [6.0, 6.0, 9.0, 10.0, 10.0]),
        (30.0, [18.0, 18.0, 18.0]),
        (0.5, [2.0, 2.0, 2.0]),
    ],
)
def test_after_two_in_vain_a_renewal_may_take_longer_up_to_a_bound(
    lease_s: float, limits: list[float]
) -> None:
    patience, seen = RenewalPatience(lease_s), []
    for _ in limits:
        seen.append(patience.limit_s)
        patience = patience.after(success=False)
    assert seen == limits
    assert patience.after(success=True).limit_s == limits[0]


def test_a_lease_that_cannot_be_renewed_for_days_costs_no_number_too_large() -> None:
    assert RenewalPatience(3.0, failures=10**6).limit_s == 6.0
