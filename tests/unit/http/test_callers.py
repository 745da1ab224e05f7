"""Whose certificate is an administrator's."""

import pytest

from keylime.http.callers import administrator
from tests.fakes.tls_material import CLIENT_AUTH, SERVER_AUTH, Authority, self_signed

CA = Authority()


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
