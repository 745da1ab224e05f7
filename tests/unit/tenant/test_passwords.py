from collections.abc import Callable
from pathlib import Path

import pytest

from keylime.config.reader import Assignment, ConfigFile
from keylime.config.settings import join_settings
from keylime.errors import ConfigError
from keylime.pki.ca_settings import CaSettings, ca_settings
from keylime_tenant.passwords import keystore_password, new_keystore_password


def settings(password: str) -> CaSettings:
    entry = Assignment("ca", "password", password, 2)
    return ca_settings(join_settings("ca", [ConfigFile(Path("/etc/keylime/ca.conf"), (entry,))], {}))


def refuse(_prompt: str) -> str:
    raise AssertionError("nobody must be asked")


def test_a_configured_password_is_used_without_asking() -> None:
    assert keystore_password(settings("secret"), is_terminal=lambda: True, ask=refuse) == "secret"


def test_a_variable_may_hold_the_shipped_word_for_a_ca_that_has_it_but_not_for_a_new_one() -> None:
    found = ca_settings(join_settings("ca", [], {"KEYLIME_CA_PASSWORD": "default"}))
    assert keystore_password(found, is_terminal=lambda: True, ask=refuse) == "default"
    with pytest.raises(ConfigError, match="no terminal"):
        new_keystore_password(found, is_terminal=lambda: False, ask=refuse)


def test_the_shipped_password_means_asking_on_a_terminal() -> None:
    prompts = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return "typed"

    assert keystore_password(settings("default"), is_terminal=lambda: True, ask=answer) == "typed"
    assert prompts == ["Please enter the password to decrypt your keystore: "]


def test_without_a_terminal_the_error_names_option_and_variable() -> None:
    with pytest.raises(ConfigError, match=r"\[ca\] password.*KEYLIME_CA_PASSWORD"):
        keystore_password(settings("default"), is_terminal=lambda: False, ask=refuse)


@pytest.mark.parametrize("configured", ["", "default"])
def test_an_empty_password_is_refused(configured: str) -> None:
    with pytest.raises(ConfigError, match="You must specify a password!"):
        keystore_password(settings(configured), is_terminal=lambda: True, ask=lambda _prompt: "")


def answering(*answers: str) -> tuple[list[str], Callable[[str], str]]:
    given, prompts = iter(answers), []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return next(given)

    return prompts, answer


def test_the_password_of_a_new_ca_is_chosen_and_typed_twice() -> None:
    prompts, answer = answering("typed", "typed")
    assert new_keystore_password(settings("default"), is_terminal=lambda: True, ask=answer) == "typed"
    assert prompts == ["Please choose a password for the keystore of the new CA: ", "Please enter it again: "]
    assert new_keystore_password(settings("secret"), is_terminal=lambda: True, ask=refuse) == "secret"


@pytest.mark.parametrize(
    ("answers", "told"),
    [(("typed", "tpyed"), "the two passwords differ"), (("",), "You must specify"), (("x", ""), "differ")],
)
def test_a_new_password_that_is_typed_differently_or_not_at_all_makes_no_ca(
    answers: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        new_keystore_password(settings("default"), is_terminal=lambda: True, ask=answering(*answers)[1])


def test_a_new_password_cannot_be_asked_for_without_a_terminal() -> None:
    with pytest.raises(ConfigError, match="KEYLIME_CA_PASSWORD"):
        new_keystore_password(settings("default"), is_terminal=lambda: False, ask=refuse)
