"""Whose certificate is an administrator's."""

import pytest

from keylime.http import callers
from keylime.http.callers import RoleRule, administrator
from keylime.pki.certificates import parse_certificate
from keylime.pki.roles import ADMINISTRATOR, NODE
from keylime_agent.handlers import any_client
from tests.fakes.tls_material import (
    CLIENT_AUTH,
    SERVER_AUTH,
    Authority,
    WithSerial0,
    plain_leaf,
    self_signed,
    unmarked_node,
)

CA = Authority()
AGENT = "d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa"


@pytest.mark.parametrize("usages", [(), (CLIENT_AUTH,), (SERVER_AUTH, CLIENT_AUTH)])
def test_a_client_certificate_with_a_name_is_an_administrators(usages: tuple) -> None:  # type: ignore[type-arg]
    assert administrator(CA.issue("operator", usages=usages).certificate) == "operator"


def test_no_certificate_is_nobodys() -> None:
    assert administrator(None) is None


def test_a_server_certificate_gives_no_rights() -> None:
    assert administrator(CA.issue("server", usages=(SERVER_AUTH,)).certificate) is None


def test_a_certificate_without_a_name_gives_no_rights() -> None:
    assert administrator(CA.issue(None).certificate) is None


def test_a_ca_certificate_gives_no_rights() -> None:
    assert administrator(CA.issue("intermediate", ca=True).certificate) is None
    assert administrator(CA.certificate) is None


def test_an_agents_own_certificate_gives_no_rights() -> None:
    assert administrator(self_signed("d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa").certificate) is None


def test_n3_a_machines_certificate_gives_no_rights_whatever_its_age() -> None:
    marked = CA.issue("web01", usages=(SERVER_AUTH, CLIENT_AUTH, NODE))
    for node in (marked, unmarked_node(CA, "web01"), plain_leaf(CA, AGENT)):
        assert administrator(node.certificate) is None
        assert any_client(node.certificate) is None


def test_n3_services_certificates_of_another_release_give_no_rights() -> None:
    for name in ("server", "RevocationNotifier"):
        assert administrator(plain_leaf(CA, name).certificate) is None
        assert any_client(plain_leaf(CA, name).certificate) is None
    assert administrator(plain_leaf(CA, "client").certificate) == "client"


def rule(*, require: bool = False) -> RoleRule:
    return RoleRule(administrator, require_role=require, section="verifier")


def test_n3_who_has_the_role_is_not_talked_about(caplog: pytest.LogCaptureFixture) -> None:
    bearer = CA.issue("alice", usages=(CLIENT_AUTH, ADMINISTRATOR)).certificate
    assert rule()(bearer) == rule(require=True)(bearer) == "alice"
    assert rule()(None) is None
    assert not caplog.records


def test_n3_a_certificate_without_the_role_is_accepted_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = rule()
    former, another = (plain_leaf(CA, name).certificate for name in ("client", "operator"))
    assert [asked(former) for _ in range(3)] == ["client"] * 3
    assert asked(another) == "operator"
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    text = caplog.messages[0]
    assert "CN=client" in text
    assert str(former.serial_number) in text
    assert "[verifier] require_admin_role is off" in text
    assert "keylime_ca -c create" in text


def test_n3_where_the_role_is_demanded_a_certificate_without_it_gives_no_rights(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = rule(require=True)
    assert [asked(plain_leaf(CA, "client").certificate) for _ in range(2)] == [None, None]
    assert "gives no rights ([verifier] require_admin_role is on)" in caplog.text


def test_what_is_remembered_of_certificates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "_MAX_REMEMBERED", 2)
    asked = rule()
    for number in range(4):
        asked(CA.issue(f"operator{number}").certificate)
    assert len(asked._told) == 2


def test_a_serial_number_that_libraries_warn_of_ends_no_request(caplog: pytest.LogCaptureFixture) -> None:
    issued = CA.issue("alice")
    odd = parse_certificate(WithSerial0(issued.certificate, issued.key).der)
    assert rule()(odd) == "alice"
    assert "serial number 0" in caplog.messages[0]


def test_the_subject_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    rule()(CA.issue("x\nforged").certificate)
    assert "\n" not in caplog.messages[0]
