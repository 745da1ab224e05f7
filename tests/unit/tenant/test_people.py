import base64
import hashlib
from datetime import timedelta

import pytest

from keylime_tenant.people import agent_lines, name_lines, policies_in_force, registration_lines
from keylime_tenant.terminal import Terminal
from keylime_tenant.told_status import ToldStatus, told_status
from tests.fakes.tls_material import self_signed
from tests.unit.tenant.test_standing import STATUS, finding

ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
NOW = 1_700_000_160.0


def good(**others: object) -> ToldStatus:
    document = {
        "operational_state": "Get Quote",
        "attestation_status": "PASS",
        "attestation_count": 12,
        "last_successful_attestation": 1_700_000_100,
        "ip": "2001:db8:1234:5678:9abc:def0:1234:5678",
        "port": 9002,
        "runtime_policy_name": "servers-of-the-second-data-centre",
        "has_runtime_policy": 1,
        **others,
    }
    return told_status(document)


def test_there_is_one_line_for_each_agent_the_worst_first_with_findings_below() -> None:
    failed = told_status({**STATUS, "unreachable_since": None})
    lines = list(agent_lines({"a": good(), "b": failed}, Terminal(), NOW))
    assert lines[0].split() == ["AGENT", "STATE", "LAST", "PASS", "PASSES", "ADDRESS", "POLICIES"]
    assert lines[1].split()[:2] == ["b", "failed"]
    assert lines[2:-1] == [
        "   rebooted 2 times",
        "   1. ima.validation.ima-ng.not_in_allowlist (error)",
        "      path      /root/evil.sh",
        "      entry     41",
        "      the file is not in the runtime policy",
    ]
    assert lines[-1].split()[:5] == ["a", "attested", "1", "min", "0"]


@pytest.mark.parametrize("width", [20, 80, 140])
def test_no_width_cuts_an_id_a_path_or_a_digest(width: int) -> None:
    path, digest = "/usr/lib/" + "x" * 200, "ab" * 64
    status = good(last_findings=[finding(path, observed=digest)], attestation_status="FAIL")
    lines = list(agent_lines({ID: status}, Terminal(width), NOW))
    text = "\n".join(lines)
    assert all(value in text for value in (ID, path, digest, "failed"))
    assert "..." not in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert width < 80 or len(lines[1]) <= width


def test_what_does_not_fit_is_left_out_as_a_whole_and_wide_shows_all() -> None:
    statuses = {ID: good()}
    narrow, *_ = agent_lines(statuses, Terminal(80), NOW)
    assert narrow.split() == ["AGENT", "STATE", "LAST", "PASS"]
    wide = list(agent_lines(statuses, Terminal(80, is_wide=True), NOW))
    assert "2001:db8:1234:5678:9abc:def0:1234:5678:9002" in wide[1]
    assert "runtime policy servers-of-the-second-data-centre" in wide[1]
    assert "Get Quote" in wide[1]


def test_many_places_of_a_finding_are_counted_and_wide_shows_them() -> None:
    statuses = {ID: good(last_findings=[finding(f"/bin/{number}") for number in range(9)])}
    text = "\n".join(agent_lines(statuses, Terminal(80), NOW))
    assert "/bin/4" in text
    assert "/bin/5" not in text
    assert "and 4 more: -o wide shows them" in text
    assert "/bin/8" in "\n".join(agent_lines(statuses, Terminal(80, is_wide=True), NOW))


def test_an_agent_cannot_steer_the_terminal() -> None:
    text = "\n".join(agent_lines({"\x1b[2J": good(ip="\x1b]0;x")}, Terminal(80, is_wide=True), NOW))
    assert "\x1b" not in text


def test_the_policies_in_force_have_names_and_versions() -> None:
    assert policies_in_force(good(runtime_policy_version=7, tpm_policy='{"mask": "0x400"}')) == [
        "runtime policy servers-of-the-second-data-centre version 7"
    ]
    status = {"has_runtime_policy": 1, "has_mb_refstate": 1, "tpm_policy": '{"15": ["ab"], "mask": "0x8000"}'}
    assert policies_in_force(told_status(status)) == ["runtime policy", "measured boot policy", "TPM policy"]
    assert policies_in_force(told_status({"tpm_policy": "{}"})) == []
    several = [
        {"name": "old", "until": 1, "has_ended": True},
        {"name": "web", "until": 2_000_000_000},
        {"name": "x"},
    ]
    assert policies_in_force(good(runtime_policies=several)) == [
        "runtime policy web until 2033-05-18 03:33:20 UTC",
        "runtime policy x",
    ]


def test_the_first_of_several_policies_has_its_version() -> None:
    parts = [{"name": "servers-of-the-second-data-centre"}, "nonsense"]
    assert policies_in_force(good(runtime_policies=parts, runtime_policy_version=2)) == [
        "runtime policy servers-of-the-second-data-centre version 2"
    ]


def test_a_registration_names_keys_by_whole_digests() -> None:
    key = b"a key"
    encoded = base64.b64encode(key).decode()
    record = {"ip": "192.0.2.7", "port": 9002, "regcount": 3, "ek_tpm": encoded}
    lines = list(registration_lines({ID: record}, Terminal(80)))
    assert lines[0].startswith(ID)
    assert f"   endorsement key  SHA-256 {hashlib.sha256(key).hexdigest()}" in lines
    assert "   registered       3 times" in lines
    assert "   EK certificate   none" in lines
    wide = "\n".join(registration_lines({ID: record}, Terminal(80, is_wide=True)))
    assert encoded in wide


def test_names_stand_below_their_number() -> None:
    assert list(name_lines("agents", ["a", "b"], Terminal())) == ["agents: 2", "a", "b"]
    assert list(name_lines("agents", [], Terminal())) == ["agents: none"]


def test_a_certificate_that_should_have_been_renewed_is_told_below_its_digest() -> None:
    certificate = self_signed("agent", days=(-9, 20))
    end = certificate.certificate.not_valid_after_utc
    record = {"mtls_cert": certificate.pem}

    def said(days_left: float) -> list[str]:
        now = (end - timedelta(days=days_left)).timestamp()
        return [line for line in registration_lines({ID: record}, Terminal(80), now=now) if " it " in line]

    assert said(29) == []  # its agent has two days to renew it
    (line,) = said(27)
    assert line.endswith(f"it ends on {end:%Y-%m-%d}: the agent makes a new one when it starts")
    assert "it ended on" in said(-1)[0]
