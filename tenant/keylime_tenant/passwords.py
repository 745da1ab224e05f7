"""Where the password of a CA's key store comes from.

The shipped value of `[ca] password` services take literally; people are asked instead.
"""

import getpass
import sys
from collections.abc import Callable

from keylime.errors import ConfigError
from keylime.pki.ca_settings import SHIPPED_PASSWORD, CaSettings

PROMPT = "Please enter the password to decrypt your keystore: "
NEW_PROMPT = "Please choose a password for the keystore of the new CA: "
AGAIN_PROMPT = "Please enter it again: "
_REMEDY = "Set [ca] password in ca.conf, or KEYLIME_CA_PASSWORD"


def has_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def keystore_password(
    settings: CaSettings,
    *,
    is_terminal: Callable[[], bool] = has_terminal,
    ask: Callable[[str], str] = getpass.getpass,
) -> str:
    """The configured password, or the answer on the terminal. Raises ConfigError without either."""
    if not settings.is_shipped:
        return _given(settings.password)
    _demand_terminal(is_terminal)
    return _given(_answer(ask, PROMPT))


def new_keystore_password(
    settings: CaSettings,
    *,
    is_terminal: Callable[[], bool] = has_terminal,
    ask: Callable[[str], str] = getpass.getpass,
) -> str:
    """The same for a key store that is made now: whoever types it does so twice. Raises ConfigError.

    Here the word that everybody knows is none, wherever it stands.
    """
    if settings.password != SHIPPED_PASSWORD:
        return _given(settings.password)
    _demand_terminal(is_terminal)
    password = _given(_answer(ask, NEW_PROMPT))
    if _answer(ask, AGAIN_PROMPT) != password:
        raise ConfigError("the two passwords differ: no CA is made")
    return password


def _demand_terminal(is_terminal: Callable[[], bool]) -> None:
    if not is_terminal():
        raise ConfigError(
            "the CA's key store needs a password and there is no terminal to ask on: "
            "set [ca] password in ca.conf, or KEYLIME_CA_PASSWORD"
        )


def _answer(ask: Callable[[str], str], question: str) -> str:
    try:
        return ask(question)
    except EOFError:
        return ""


def _given(password: str) -> str:
    if not password:
        raise ConfigError(f"You must specify a password! {_REMEDY}")
    return password
