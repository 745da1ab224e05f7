"""What the holder of a certificate may be, with and without markers."""

from pathlib import Path

import pytest
from cryptography import x509

from keylime.pki.roles import (
    ADMINISTRATOR,
    NODE,
    extended_usages,
    is_administrators,
    is_nodes,
    is_services,
    vouches_for_services,
)
from tests.fakes.tls_material import CLIENT_AUTH, IPSEC_IKE, SERVER_AUTH, Authority, plain_leaf, unmarked_node

CA = Authority()
UUID = "D432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa"
CA_7_14_3 = Path(__file__).parents[2] / "data" / "ca-7.14.3"


def test_the_markers_decide_and_a_machine_is_never_more() -> None:
    administrator = CA.issue("alice", usages=(CLIENT_AUTH, ADMINISTRATOR)).certificate
    node = CA.issue("web01", usages=(SERVER_AUTH, CLIENT_AUTH, NODE)).certificate
    both = CA.issue("web01", usages=(CLIENT_AUTH, NODE, ADMINISTRATOR)).certificate
    assert [is_administrators(found) for found in (administrator, node, both)] == [True, False, False]
    assert [is_nodes(found) for found in (administrator, node, both)] == [False, True, True]


def test_any_usage_is_no_role() -> None:
    anything = CA.issue("alice", usages=(x509.ObjectIdentifier("2.5.29.37.0"),)).certificate
    assert not is_administrators(anything)


@pytest.mark.parametrize("name", ["node1", UUID, "web01.example.com"])
def test_a_machine_is_known_by_the_usages_that_only_machines_had(name: str) -> None:
    assert is_nodes(unmarked_node(CA, name).certificate)


def test_without_our_comment_the_same_usages_are_somebody_elses_business() -> None:
    assert not is_nodes(CA.issue(UUID, usages=(SERVER_AUTH, CLIENT_AUTH, IPSEC_IKE)).certificate)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (UUID, True),
        ("0" * 64, True),
        ("AB" * 32, True),
        ("client", False),
        ("alice", False),
        ("node1", False),
        (UUID + "0", False),
        ("0" * 63, False),
    ],
)
def test_where_nothing_says_what_it_is_for_an_agents_id_does(name: str, expected: bool) -> None:
    assert is_nodes(plain_leaf(CA, name).certificate) is expected
    assert not is_nodes(CA.issue(name).certificate)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("server", True), ("RevocationNotifier", True), ("client", False), ("Server", False)],
)
def test_the_names_of_services(name: str, expected: bool) -> None:
    assert is_services(plain_leaf(CA, name).certificate) is expected
    assert not is_services(CA.issue(name).certificate)
    assert is_services(CA.issue(name, usages=(SERVER_AUTH,)).certificate)


def test_certificates_of_another_releases_authority() -> None:
    notifier, node = (
        x509.load_pem_x509_certificate((CA_7_14_3 / f"{name}-cert.crt").read_bytes())
        for name in ("RevocationNotifier", "node1")
    )
    assert is_services(notifier)
    found = [judge(node) for judge in (is_nodes, is_services, is_administrators, vouches_for_services)]
    assert found == [False] * 4


def test_what_a_daemons_authority_has_issued() -> None:
    issued = [
        CA.issue("a", usages=(SERVER_AUTH,)),
        CA.issue("b", usages=(CLIENT_AUTH,)),
        CA.issue("c", usages=(CLIENT_AUTH, ADMINISTRATOR)),
        plain_leaf(CA, "server"),
        plain_leaf(CA, "client"),
    ]
    assert all(vouches_for_services(leaf.certificate) for leaf in issued)
    assert not vouches_for_services(unmarked_node(CA, "d").certificate)
    assert not vouches_for_services(CA.issue("e", usages=(SERVER_AUTH, CLIENT_AUTH, NODE)).certificate)


def test_usages_that_cannot_be_read_are_an_error_not_none() -> None:
    assert extended_usages(CA.issue("a").certificate) is None
    broken = CA.issue("a", usages=(CLIENT_AUTH,)).der.replace(
        bytes.fromhex("0603551d25"), bytes.fromhex("0603551d13")
    )
    with pytest.raises(ValueError):  # noqa: PT011 - the parser's own words
        extended_usages(x509.load_der_x509_certificate(broken))
