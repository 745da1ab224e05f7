"""The names of servers: which certificate is for which host, and what becomes of the others."""

import ipaddress

import pytest
from cryptography import x509

from keylime.errors import CredentialError
from keylime.pki.roles import NODE
from keylime.pki.server_names import NameCheck, ServerNames, server_remark
from tests.fakes.tls_material import CLIENT_AUTH, SERVER_AUTH, Authority, plain_leaf, unmarked_node

CA = Authority()


def certificate(*names: str, common_name: str = "verifier.example.com") -> x509.Certificate:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return CA.issue(common_name, usages=(SERVER_AUTH,), names=found).certificate


@pytest.mark.parametrize(
    ("names", "host"),
    [
        (["verifier.example.com"], "verifier.example.com"),
        (["Verifier.Example.COM"], "verifier.example.com"),
        (["verifier.example.com"], "VERIFIER.example.com."),
        (["verifier.example.com."], "verifier.example.com"),
        (["other", "verifier"], "verifier"),
        (["*.example.com"], "verifier.example.com"),
        (["xn--bcher-kva.example"], "xn--bcher-kva.example"),
        (["192.0.2.1"], "192.0.2.1"),
        (["2001:db8::1"], "2001:0DB8:0::1"),
        (["2001:db8::1"], "[2001:db8::1]"),
        (["fe80::1"], "fe80::1%eth0"),
    ],
)
def test_n4_a_certificate_for_the_host(names: list[str], host: str) -> None:
    assert server_remark(certificate(*names), host, NameCheck.STRICT) is None


@pytest.mark.parametrize(
    ("names", "host"),
    [
        (["verifier.example.com"], "registrar.example.com"),
        (["example.com"], "verifier.example.com"),
        (["verifier.example.com"], "verifier.example.com.evil.net"),
        (["*.example.com"], "example.com"),
        (["*.example.com"], "a.b.example.com"),
        (["*.example.com"], ".example.com"),
        (["*"], "verifier"),
        (["*.com"], "example.com"),
        (["ver*.example.com"], "verifier.example.com"),
        (["*.*.com"], "verifier.example.com"),
        (["*.*.com"], "verifier.*.com"),
        (["127.0.0.2"], "127.0.0.1"),
        (["*.0.0.1"], "127.0.0.1"),
        (["localhost"], "127.0.0.1"),
    ],
)
def test_n4_a_certificate_for_another_host(names: list[str], host: str) -> None:
    with pytest.raises(CredentialError, match=r"is for .* and not for .*cert_subject_alternative_names"):
        server_remark(certificate(*names), host, NameCheck.STRICT)
    assert "and not for" in (server_remark(certificate(*names), host, NameCheck.WARN) or "")
    assert server_remark(certificate(*names), host, NameCheck.OFF) is None


def test_n4_an_address_written_as_a_host_name_is_no_address() -> None:
    written = CA.issue("x", usages=(SERVER_AUTH,), names=[x509.DNSName("127.0.0.1")]).certificate
    with pytest.raises(CredentialError):
        server_remark(written, "127.0.0.1", NameCheck.STRICT)


def test_n4_a_common_name_is_no_name_of_a_host() -> None:
    nameless = certificate()
    with pytest.raises(
        CredentialError, match=r"has no subject alternative names.*give it a certificate with"
    ):
        server_remark(nameless, "verifier.example.com", NameCheck.STRICT)
    assert server_remark(nameless, "verifier.example.com", NameCheck.WARN) is None


@pytest.mark.parametrize("check", NameCheck)
def test_n3_a_machines_certificate_is_no_servers(check: NameCheck) -> None:
    machines = [
        CA.issue("localhost", usages=(SERVER_AUTH, CLIENT_AUTH, NODE), names=[x509.DNSName("localhost")]),
        unmarked_node(CA, "localhost"),
        plain_leaf(CA, "d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa"),
    ]
    for machine in machines:
        with pytest.raises(CredentialError, match=r"made for a machine.*--role server"):
            server_remark(machine.certificate, "localhost", check)
    assert server_remark(plain_leaf(CA, "server").certificate, "server", check) is None


def test_names_are_shown_in_one_line_and_not_all() -> None:
    shown = str(ServerNames.of(certificate(*(f"host{number}" for number in range(12)))))
    assert shown.endswith("host9 and 2 more")
