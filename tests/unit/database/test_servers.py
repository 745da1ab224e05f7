"""How operators name one PostgreSQL server or several."""

from pathlib import Path

import pytest

from keylime.database.engine import parse_database_url
from keylime.database.servers import Choice, Sessions, parse_server_url, places_of
from keylime.database.servers import ServerAddress as At
from keylime.database.sessions import connect_arguments, session_name, session_settings
from keylime.errors import ConfigError

TWO = (At("h1", "5432"), At("h2", "5433"))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("postgresql://u:p@h1:5432,h2:5433/db?target_session_attrs=read-write", TWO),
        ("postgresql+psycopg://u:p@h1:5432,h2:5433/db", TWO),
        ("postgres://u:p@h1:5432,h2:5433/db", TWO),
        ("postgresql://u:p@/db?host=h1:5432&host=h2:5433", TWO),
        ("postgresql+psycopg://u:p@/db?host=h1:5432&host=h2:5433", TWO),
        ("postgresql://u:p@/db?host=h1,h2&port=5432,5433", TWO),
        ("postgresql://u:p@/db?host=h1&host=h2&port=5432&port=5433", TWO),
        (
            "postgresql://u:p@/db?host=h1,h2&port=6000",
            (At("h1", "6000"), At("h2", "6000")),
        ),
        ("postgresql://u:p@h1,h2:5433/db", (At("h1"), At("h2", "5433"))),
        (
            "postgresql://u:p@[::1]:5432,[fe80::1]/db",
            (At("::1", "5432"), At("fe80::1")),
        ),
        ("postgresql://u:p@h1:5432/db", (At("h1", "5432"),)),
        ("postgresql://u:p@/db?host=h1&port=5432", (At("h1", "5432"),)),
        ("postgresql://u:p@h1/db?host=h1", (At("h1"),)),
        ("postgresql://u:p@[::1]/db", (At("::1"),)),
        ("postgresql://u:p@/db?host=/run/postgresql", (At("/run/postgresql"),)),
        ("postgresql://u:p@%2Frun%2Fpostgresql/db", (At("/run/postgresql"),)),
        ("postgresql://u:p@/db", (At(""),)),
    ],
)
def test_every_form_names_the_same_servers_to_the_driver(text: str, places: tuple[At, ...]) -> None:
    url = parse_database_url(text, work_dir=Path("/x"), sqlite_name="y")
    assert (places_of(url), url.username, url.password, url.database) == (places, "u", "p", "db")
    _, arguments = url.get_dialect()().create_connect_args(url)
    hosts = str(arguments.get("host", "")).split(",")
    ports = str(arguments.get("port", "")).split(",")
    assert hosts == [place.host for place in places]
    assert ports in ([place.port for place in places], [""])
    if len(places) > 1:
        assert arguments["target_session_attrs"] == "read-write", "a standby is of no use"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:hush@h1,h2/db?target_session_attrs=standby",
        "postgresql://u:hush@h/db?target_session_attrs=prefer-standby",
        "postgresql://u:hush@h/db?no_such=1",
        "postgresql://u:hush@h/db?sslmode=require&sslmode=disable",
        "postgresql://u:hush@h1:5432,h2:x/db",
        "postgresql://u:hush@h1:99999/db",
        "postgresql://u:hush@h1,,h3/db",
        "postgresql://u:hush@/db?host=h1,h2&port=1,2,3",
        "postgresql://u:hush@/db?host=h1:1,h2:2&port=1,2",
        "postgresql://u:hush@h1,h2/db?host=h3",
        "postgresql://u:hu/sh@h1/db",
        "postgresql:/u:hush@h1/db",
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_that_shows_no_password(text: str) -> None:
    with pytest.raises(ConfigError, match="database_url") as caught:
        parse_server_url(text)
    assert "hu" not in str(caught.value)


def test_characters_of_a_password_survive() -> None:
    assert parse_server_url("postgresql://u:a@b%2F:c@h1,h2/db").password == "a@b/:c"  # noqa: S105


def test_the_server_that_answered_last_is_asked_first() -> None:
    choice, places = Choice(), [At("h1"), At("h2", "5433"), At("h3")]
    assert choice.order(places) == places
    choice.answered(At("h2", "5433"))
    assert choice.order(places) == [At("h2", "5433"), At("h1"), At("h3")]
    choice.answered(At("h3", "5432"))
    assert choice.order(places)[0] == At("h3")


def test_one_that_is_silent_is_not_asked_first_again() -> None:
    choice, places = Choice(), [At("h1"), At("h2"), At("h3")]
    choice.answered(At("h2"))
    assert [choice.order(places)[0].host for _ in range(4)] == ["h2", "h1", "h3", "h2"]
    choice.answered(At("h1"))
    assert choice.order(places)[0].host == "h1"


def test_what_the_url_says_goes_before_our_own_settings() -> None:
    url = parse_server_url(
        "postgresql://u@h/db?connect_timeout=30&application_name=site&options=-c%20lock_timeout%3D1"
    )
    arguments = connect_arguments(url, Sessions("keylime_verifier:ab:1", Choice()))
    assert "connect_timeout" not in arguments
    assert arguments["application_name"] == "site/keylime_verifier:ab:1"
    settings = "; ".join(session_settings(url, 150000))
    assert "lock_timeout" not in settings
    assert "SET statement_timeout = " in settings


@pytest.mark.parametrize(
    ("version", "known"), [(130000, set()), (150000, {"client_connection_check_interval"}), (170000, None)]
)
def test_a_server_is_told_only_what_it_knows(version: int, known: set[str] | None) -> None:
    newer = {"client_connection_check_interval", "transaction_timeout"}
    settings = "; ".join(session_settings(parse_server_url("postgresql://u@h/db"), version))
    assert {name for name in newer if f"SET {name} = " in settings} == (newer if known is None else known)


def test_a_session_can_be_found_by_its_own_name_however_long_the_wanted_one_is() -> None:
    own = "keylime_verifier:" + 32 * "f" + ":4194304"
    assert session_name("x" * 100, own).endswith("/" + own)
    assert len(session_name("ä" * 100, own).encode()) <= 63
    assert session_name("", own) == own
