"""What a program says about its configuration: values with their sources, no secret; and the reference."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.config import reference
from keylime.config.effective import as_lines, as_tree, effective
from keylime.config.loader import load_settings
from keylime.config.model import MASK, Kind, Option
from keylime.config.options import TABLES
from tests.effort import examples

ROOT = Path(__file__).parents[3]
URL = Option("verifier", "database_url", Kind.TEXT, "sqlite", "")


def lines(component: str, tmp_path: Path, text: str, **environ: str) -> list[str]:
    (tmp_path / f"{component}.conf").write_text(text)
    (tmp_path / f"{component}.conf").chmod(0o600)
    return list(
        as_lines(effective(load_settings(component, environ=environ, etc=tmp_path, usr_etc=tmp_path)))
    )


def test_each_value_says_where_it_comes_from(tmp_path: Path) -> None:
    told = lines("verifier", tmp_path, "[verifier]\n\nport = 1\n", KEYLIME_VERIFIER_IP="10.0.0.1")
    assert f"[verifier] port = 1  # {tmp_path}/verifier.conf, line 3" in told
    assert "[verifier] ip = 10.0.0.1  # environment variable KEYLIME_VERIFIER_IP" in told
    assert "[revocations] zmq_port = 8992  # default" in told


def test_options_without_effect_are_not_told(tmp_path: Path) -> None:
    ignored = next(option for option in TABLES["registrar"].options if option.ignored)
    assert not [line for line in lines("registrar", tmp_path, "") if f" {ignored.name} =" in line]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("server_key_password", "hunter2"),
        ("database_url", "postgresql://keylime:hunter2@db/cv"),
        ("database_url", "postgresql://db/cv?user=k&password=hunter2"),
    ],
)
def test_secrets_are_masked(option: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "verifier.conf").write_text(f"[verifier]\n{option} = {text}\n")
    (tmp_path / "verifier.conf").chmod(0o600)
    found = effective(load_settings("verifier", environ={}, etc=tmp_path, usr_etc=tmp_path))
    told = "\n".join(as_lines(found)) + json.dumps(as_tree(found))
    assert "hunter2" not in told
    assert MASK in told


@settings(max_examples=examples(200))
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=4))
def test_no_password_of_a_url_is_shown_whatever_is_in_it(password: str) -> None:
    assert URL.masked(f"postgresql://u:{password}@h/d") == f"postgresql://u:{MASK}@h/d"


def test_keywords_and_addresses_are_no_secrets() -> None:
    password = Option("ca", "password", Kind.SECRET, "default", "")
    assert (password.masked("default"), password.masked("")) == ("default", "")
    assert URL.masked("postgresql://db:5432/cv") == "postgresql://db:5432/cv"


def test_sections_without_a_table_are_told_as_they_are(tmp_path: Path) -> None:
    told = lines("logging", tmp_path, "[logger_asyncio]\nlevel = WARNING\n")
    assert "[logger_asyncio] level = WARNING  # file" in told


def _options_of(page: str) -> Iterator[str]:
    yield from re.findall(r"^\*\*`(\w+)`\*\*", page, re.MULTILINE)


def test_the_reference_is_up_to_date() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text("utf-8")
    assert page == reference.page(), "run `make config`"
    shown = [option.name for table in TABLES.values() for option in table.options if not option.ignored]
    assert sorted(_options_of(page)) == sorted(shown)
