import pytest

from keylime.errors import ConfigError
from keylime_tenant.passwords import keystore_password


def refuse(_prompt: str) -> str:
    raise AssertionError("nobody must be asked")


def test_a_configured_password_is_used_without_asking() -> None:
    assert keystore_password("secret", is_terminal=lambda: True, ask=refuse) == "secret"


def test_the_shipped_password_means_asking_on_a_terminal() -> None:
    prompts = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return "typed"

    assert keystore_password("default", is_terminal=lambda: True, ask=answer) == "typed"
    assert prompts == ["Please enter the password to decrypt your keystore: "]


def test_without_a_terminal_the_error_names_option_and_variable() -> None:
    with pytest.raises(ConfigError, match=r"\[ca\] password.*KEYLIME_CA_PASSWORD"):
        keystore_password("default", is_terminal=lambda: False, ask=refuse)


@pytest.mark.parametrize("configured", ["", "default"])
def test_an_empty_password_is_refused(configured: str) -> None:
    with pytest.raises(ConfigError, match="You must specify a password!"):
        keystore_password(configured, is_terminal=lambda: True, ask=lambda _prompt: "")
