"""Who is let into the dashboard."""

import ipaddress

import pytest

from keylime_tenant.dashboard.access import (
    SECURITY_HEADERS,
    Door,
    LinkUse,
    PageAddress,
    is_own_origin,
    own_address,
)

PLACE = PageAddress("127.9.8.7", 4711)


def test_n26_the_link_opens_once_and_who_comes_second_shuts_it() -> None:
    door = Door()
    session = door.session
    assert not door.admits(session)
    for wrong in ("", "x", door.link_token[:-1], door.link_token + "x", "é", "\ud800"):
        assert door.enter(wrong) is LinkUse.WRONG
    assert door.enter(door.link_token) is LinkUse.OPENED
    assert door.admits(session)
    assert not any(door.admits(wrong) for wrong in ("", door.link_token, session[:-1], "\ud800"))
    assert door.enter("guess") is LinkUse.WRONG
    assert door.admits(session)
    assert door.enter(door.link_token) is LinkUse.USED_BEFORE
    assert not door.admits(session)
    assert door.enter(door.link_token) is LinkUse.USED_BEFORE


def test_n27_forms_have_a_secret_of_their_own() -> None:
    door, other = Door(), Door()
    assert door.takes_form(door.form_token)
    assert not any(
        door.takes_form(wrong) for wrong in ("", door.session, door.link_token, other.form_token, "ü")
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.9.8.7:4711", True),
        ("127.9.8.7", False),
        ("127.9.8.7:4712", False),
        ("localhost:4711", False),
        ("evil.example:4711", False),
        ("", False),
    ],
)
def test_n27_names_that_were_made_to_lead_here_mean_another_page(host: str, expected: bool) -> None:
    assert PLACE.is_named_by(host) is expected


def test_a_chosen_port_is_reached_through_a_tunnel_by_both_names() -> None:
    place = PageAddress("127.0.0.1", 8900)
    assert all(place.is_named_by(f"{name}:8900") for name in ("127.0.0.1", "localhost"))
    assert not place.is_named_by("localhost:80")
    assert is_own_origin(place, "localhost:8900", "http://localhost:8900", "same-origin")
    assert not is_own_origin(place, "localhost:8900", "http://127.0.0.1:8900", "cross-site")


@pytest.mark.parametrize(
    ("origin", "site", "expected"),
    [
        ("http://127.9.8.7:4711", "same-origin", True),
        ("http://127.9.8.7:4711", None, True),
        ("http://127.9.8.7:4711", "same-site", False),
        ("http://127.9.8.7:4711", "none", False),
        ("https://127.9.8.7:4711", None, False),
        ("http://127.9.8.7:80", None, False),
        ("http://evil.example", "cross-site", False),
        ("null", None, False),
        (None, None, False),
    ],
)
def test_n27_what_changes_something_is_sent_by_our_own_page(
    origin: str | None, site: str | None, expected: bool
) -> None:
    assert is_own_origin(PLACE, PLACE.host, origin, site) is expected


def test_n26_every_page_has_a_loopback_address_of_its_own() -> None:
    addresses = {own_address() for _ in range(20)}
    assert len(addresses) > 15
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses)
    assert "127.0.0.1" not in addresses


def test_n28_nothing_of_others_is_loaded_or_run() -> None:
    policy = dict(
        part.strip().split(" ", 1) for part in SECURITY_HEADERS["Content-Security-Policy"].split(";")
    )
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) <= {"'self'", "'none'"}
    assert policy["frame-ancestors"] == "'none'"
