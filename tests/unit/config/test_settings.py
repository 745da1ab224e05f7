from pathlib import Path

import pytest

from keylime.config.reader import Assignment, ConfigFile
from keylime.config.settings import Settings, join_settings
from keylime.errors import ConfigError

PATH = Path("/etc/keylime/verifier.conf.d/10-database.conf")


def verifier(**options: str) -> Settings:
    entries = tuple(Assignment("verifier", name, text, 7) for name, text in options.items())
    return join_settings("verifier", [ConfigFile(PATH, entries)], {"KEYLIME_VERIFIER_IP": "192.0.2.1"})


def told(settings: Settings, option: str) -> str:
    with pytest.raises(ConfigError) as raised, settings.placed(option):
        raise ConfigError("it is of no use")
    return str(raised.value)


def test_an_error_about_a_value_begins_with_where_it_stands() -> None:
    settings = verifier(database_url="nonsense")
    assert told(settings, "database_url") == f"{PATH}, line 7: it is of no use"
    assert told(settings, "ip") == "environment variable KEYLIME_VERIFIER_IP: it is of no use"


def test_an_error_about_a_value_that_nobody_has_set_names_no_place() -> None:
    assert told(verifier(), "database_url") == "it is of no use"


def test_what_a_variable_sets_is_told_apart() -> None:
    assert verifier().is_of_environment("ip")
    assert not verifier(database_url="sqlite").is_of_environment("database_url")
