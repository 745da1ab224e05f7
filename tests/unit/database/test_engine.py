"""Which databases an option names."""

from pathlib import Path

import pytest

from keylime.database.engine import PoolSize, parse_database_url
from keylime.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sqlite", "sqlite+pysqlite:////var/lib/keylime/reg_data.sqlite"),
        ("sqlite:////srv/x.sqlite", "sqlite+pysqlite:////srv/x.sqlite"),
        ("sqlite+pysqlite:////srv/x.sqlite", "sqlite+pysqlite:////srv/x.sqlite"),
        ("postgresql://u:p@h:5433/n", "postgresql+psycopg://u:p@h:5433/n"),
        ("postgresql+psycopg2://u@h/n?sslmode=require", "postgresql+psycopg://u@h/n?sslmode=require"),
    ],
)
def test_urls_get_an_asynchronous_driver(text: str, expected: str) -> None:
    url = parse_database_url(text, work_dir=Path("/var/lib/keylime"), sqlite_name="reg_data.sqlite")
    assert url.render_as_string(hide_password=False) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "sqlite://", "oracle://u:hush@h", "://hush"),
        *("mysql+pymysql://u:hush@h", "mysql://u:hush@h1,h2/n", "mysql://u:hush@h:x/n"),
        *("mysql+mysqlconnector://u:hush@h/n?auth_plugin=x", "mysql://u:hush@h/n?ssl_ca=a&ssl_ca=b"),
    ],
)
def test_other_urls_are_refused_without_showing_a_password(text: str) -> None:
    with pytest.raises(ConfigError, match="database_url") as caught:
        parse_database_url(text, work_dir=Path("/x"), sqlite_name="y")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mysql://u:p@h:3307/n", "mariadb+pymysql://u:p@h:3307/n"),
        ("mariadb://u@h/n", "mariadb+pymysql://u@h/n"),
        ("mysql+pymysql://u@h/n?charset=utf8", "mariadb+pymysql://u@h/n"),
        ("mysql+mysqldb://u@h/n?use_unicode=1&ssl_ca=%2Fca", "mariadb+pymysql://u@h/n?ssl_ca=%2Fca"),
        (
            "mysql+mysqlconnector://u@h/n?connection_timeout=9&autocommit=true",
            "mariadb+pymysql://u@h/n?connect_timeout=9",
        ),
        ("mariadb+mariadbconnector://u@/n?unix_socket=/s", "mariadb+pymysql://u@/n?unix_socket=%2Fs"),
    ],
)
def test_whichever_driver_a_url_of_mariadb_names_one_is_used(text: str, expected: str) -> None:
    url = parse_database_url(text, work_dir=Path("/x"), sqlite_name="y")
    assert url.render_as_string(hide_password=False) == expected


def test_a_pool_has_two_numbers() -> None:
    assert PoolSize.parse(" 7 , 0 ") == PoolSize(7, 0)
    for text in ("", "5", "5,x", "0,1", "-1,2", "1,2,3"):
        with pytest.raises(ConfigError):
            PoolSize.parse(text)
