import pytest

from keylime_tenant.commands.verifier import owner_address
from keylime_tenant.config import Address
from keylime_tenant.told_status import told_status

ASKED = Address("192.0.2.1", 8881)


def test_an_agent_of_another_verifier_is_managed_there() -> None:
    status = {"verifier_ip": "192.0.2.2", "verifier_port": 8882}
    assert owner_address(told_status(status), ASKED) == Address("192.0.2.2", 8882)


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"verifier_ip": None, "verifier_port": None},
        {"verifier_ip": "127.0.0.1", "verifier_port": 8881},
        {"verifier_ip": "0.0.0.0", "verifier_port": 8881},  # noqa: S104 - not bound to
        {"verifier_ip": "::", "verifier_port": 8881},
        {"verifier_ip": "localhost", "verifier_port": 8881},
        {"verifier_ip": "192.0.2.2", "verifier_port": 0},
        {"verifier_ip": "192.0.2.2", "verifier_port": "8881"},
    ],
)
def test_addresses_that_lead_nowhere_from_here_are_not_followed(status: dict[str, object]) -> None:
    assert owner_address(told_status(status), ASKED) == ASKED
