"""Rows of an earlier registrar: a registration, or one line that says why not."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.takeover.report import Fate
from keylime_registrar.identity import Registration
from keylime_registrar.takeover import RegistrationPlan, RegistrationProposal, convert, settle
from tests.fakes.software_identity import SoftwareIdentity, b64
from tests.fakes.tls_material import self_signed

IDENTITY = SoftwareIdentity()
PEM = self_signed("agent").pem


def row(**changes: object) -> dict[str, Any]:
    found = IDENTITY.registration()
    whole = {
        "agent_id": "agent-1",
        "key": "c2VjcmV0",
        "aik_tpm": found["aik_tpm"],
        "ek_tpm": found["ek_tpm"],
        "ekcert": None,
        "mtls_cert": PEM,
        "ip": "10.0.0.1",
        "port": 9002,
        "virtual": 0,
        "active": 1,
        "provider_keys": "{}",
        "regcount": 3,
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not ...}


def taken(**changes: object) -> tuple[Registration, RegistrationProposal]:
    proposal = convert(row(**changes))
    assert proposal.registration is not None, proposal.item
    return proposal.registration, proposal


def test_a_proven_registration_is_taken_with_all_fields() -> None:
    registration, proposal = taken()
    assert proposal.item.fate is Fate.TAKEN
    assert (registration.ip, registration.port, registration.mtls_cert) == ("10.0.0.1", 9002, PEM)
    assert b64(registration.aik_tpm) == row()["aik_tpm"]
    assert proposal.regcount == 3


def test_certificates_of_later_releases_are_base64() -> None:
    der = "".join(line for line in PEM.splitlines() if "-----" not in line)
    assert taken(mtls_cert=der)[0].mtls_cert == PEM
    assert taken(mtls_cert="\n".join(PEM.splitlines()[1:-1]))[0].mtls_cert == PEM, "in lines as well"
    assert taken(mtls_cert="disabled")[0].mtls_cert == "disabled"


@pytest.mark.parametrize("word", ["emulator", "virtual"])
def test_words_in_the_place_of_a_certificate_are_none(word: str) -> None:
    registration, proposal = taken(ekcert=word)
    assert registration.ekcert is None
    assert proposal.item.fate is Fate.CHANGED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"active": 0}, "never proven"),
        ({"active": None}, "never proven"),
        ({"active": ...}, "never proven"),
        ({"aik_tpm": None}, "aik_tpm is missing"),
        ({"ek_tpm": ""}, "ek_tpm is missing"),
        ({"aik_tpm": "***"}, "aik_tpm is not base64"),
        ({"ek_tpm": base64.b64encode(b"x").decode()}, "cannot be used"),
        ({"agent_id": "a b"}, "another uuid"),
        ({"agent_id": None}, "another uuid"),
        ({"agent_id": b"\xff"}, "another uuid"),
    ],
)
def test_what_cannot_be_taken_says_why(changes: dict[str, object], words: str) -> None:
    proposal = convert(row(**changes))
    assert proposal.registration is None
    assert proposal.item.fate is Fate.NOT_TAKEN
    assert words in str(proposal.item)


def test_what_a_registration_can_do_without_is_left_out_and_said() -> None:
    registration, proposal = taken(ekcert="$", mtls_cert="?", port=70000, ip="a b", iak_cert="xx")
    assert (registration.ekcert, registration.mtls_cert, registration.port, registration.ip) == (None,) * 4
    assert proposal.item.fate is Fate.CHANGED
    assert len(proposal.item.remarks) == 5


@given(
    st.dictionaries(
        st.sampled_from(sorted(row())),
        st.one_of(st.none(), st.integers(), st.text(max_size=20), st.binary(max_size=20), st.floats()),
        max_size=4,
    )
)
def test_no_row_stops_the_others(changes: dict[str, object]) -> None:
    proposal = convert({**row(), **changes})
    assert (proposal.registration is None) is (proposal.item.fate is Fate.NOT_TAKEN)


def test_what_is_here_stays() -> None:
    registration, proposal = taken()
    plan = RegistrationPlan("s", "r", (proposal,))
    missing, report = settle(plan, {})
    assert (missing, report.items[0].fate) == ([proposal], Fate.TAKEN)
    same = {"agent-1": (registration.ek_tpm, registration.aik_tpm)}
    missing, report = settle(plan, same)
    assert (missing, report.items[0].fate, report.items[0].remarks) == ([], Fate.PRESENT, ())
    missing, report = settle(plan, {"agent-1": (b"other", registration.aik_tpm)})
    assert missing == []
    assert "which stays" in str(report.items[0])
