from typing import Any

import pytest

from keylime.messages.verifier import OperationalState
from keylime_tenant.told_status import told_status
from tests.unit.tenant.test_standing import STATUS


@pytest.mark.parametrize(
    ("told", "state", "words"),
    [
        (9, OperationalState.INVALID_QUOTE, "Invalid Quote"),
        ("Invalid Quote", OperationalState.INVALID_QUOTE, "Invalid Quote"),
        (77, None, 77),
        ("Not applicable (Push Mode)", None, "Not applicable (Push Mode)"),
        (None, None, None),
        ([], None, None),
    ],
)
def test_states_are_told_in_words_and_unknown_ones_as_they_are(
    told: object, state: OperationalState | None, words: object
) -> None:
    status = told_status({"operational_state": told})
    assert (status.state, status.state_text) == (state, words)
    assert status.for_scripts() == {"operational_state": told if state is None else words}


def test_scripts_get_members_that_we_do_not_know_and_none_that_was_not_told() -> None:
    assert told_status(STATUS).for_scripts() == {**STATUS, "operational_state": "Invalid Quote"}


def test_y5_a_share_that_a_verifier_shows_is_not_shown_on() -> None:
    status = told_status({**STATUS, "v": "c2hhcmU="})
    assert status.v == "c2hhcmU="
    assert status.for_scripts()["v"] is None


@pytest.mark.parametrize(
    "odd",
    [
        {"attestation_count": "many"},
        {"last_findings": None},
        {"ip": 7, "port": "9002"},
        {"runtime_policies": "web"},
        {"document": 5},
    ],
)
def test_a_member_of_another_shape_is_not_told_and_hides_no_other(odd: dict[str, Any]) -> None:
    status = told_status({**odd, "reboots": 2})
    assert status == told_status({"reboots": 2, **odd})
    assert (status.attestation_count, status.last_findings, status.ip, status.port) == (None, [], None, None)
    assert (status.reboots, status.parts, status.document) == (2, [], {"reboots": 2, **odd})


def test_of_lists_the_parts_that_can_be_read_are_read() -> None:
    finding = STATUS["last_findings"][0]
    status = told_status({"last_findings": [1, finding], "runtime_policies": [{"name": "web"}, "nonsense"]})
    assert [one.event_id for one in status.findings] == [finding["event_id"]]
    assert [one.name for one in status.parts] == ["web"]


def test_a_verifier_that_names_boot_policies_can_change_enrolments() -> None:
    assert told_status({"mb_policy_name": None}).can_be_changed
    assert not told_status({}).can_be_changed


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("10s", 10),
        ("3600s", 3600),
        (None, None),
        (10, None),
        ("", None),
        ("s", None),
        ("10m", None),
        ("-1s", None),
    ],
)
def test_how_long_a_machine_may_take_is_read_as_it_is_told(told: object, seconds: int | None) -> None:
    assert told_status({"maximum_attestation_interval": told}).longest_interval_s == seconds
