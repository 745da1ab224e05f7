"""The prefixes that strangers are counted under."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.http.sources import source_prefixes


@pytest.mark.parametrize(
    ("address", "prefixes"),
    [
        ("192.0.2.77", ("192.0.2.77/32", "192.0.2.0/24")),
        ("::ffff:192.0.2.77", ("192.0.2.77/32", "192.0.2.0/24")),
        ("::ffff:c000:24d", ("192.0.2.77/32", "192.0.2.0/24")),
        (" 192.0.2.77 ", ("192.0.2.77/32", "192.0.2.0/24")),
        ("2001:db8:1:2:3:4:5:6", ("2001:db8:1:2::/64",)),
        ("2001:DB8:1:2::", ("2001:db8:1:2::/64",)),
        ("fe80::1%eth0", ("fe80::/64",)),
        ("::1", ("::/64",)),
    ],
)
def test_n7_an_address_has_its_prefixes_narrowest_first(address: str, prefixes: tuple[str, ...]) -> None:
    assert source_prefixes(address) == prefixes


@pytest.mark.parametrize(
    "address", ["", "unix", "192.0.2", "192.0.2.1/24", "1.2.3.4.5", "::g", "\x00", "%", "é"]
)
def test_n7_whatever_is_no_address_is_one_source(address: str) -> None:
    assert source_prefixes(address) == source_prefixes("nothing of the kind")


@given(st.text())
def test_n7_no_text_is_without_a_source(address: str) -> None:
    assert source_prefixes(address)


@given(st.integers(1, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_n7_the_neighbours_in_a_subnet_are_one_source(subnet: int, one: int, other: int) -> None:
    addresses = [str(IPv6Address(subnet << 64 | host)) for host in (one, other)]
    assert len({source_prefixes(address) for address in addresses}) == 1


@given(st.ip_addresses())
def test_n7_prefixes_are_written_as_networks_are(address: IPv4Address | IPv6Address) -> None:
    meant = getattr(address, "ipv4_mapped", None) or address
    lengths = (32, 24) if meant.version == 4 else (64,)
    expected = tuple(str(ip_network((meant, length), strict=False)) for length in lengths)
    assert source_prefixes(str(address)) == expected
