"""Where the password of a CA's key store comes from."""

import getpass
import sys
from collections.abc import Callable

from keylime.errors import ConfigError

# The shipped value of `[ca] password`: services take it literally, people are asked instead.
ASK = "default"

PROMPT = "Please enter the password to decrypt your keystore: "


def has_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def keystore_password(
    configured: str,
    *,
    is_terminal: Callable[[], bool] = has_terminal,
    ask: Callable[[str], str] = getpass.getpass,
) -> str:
    """The configured password, or the answer on the terminal. Raises ConfigError without either."""
    if configured != ASK:
        password = configured
    elif is_terminal():
        try:
            password = ask(PROMPT)
        except EOFError:
            password = ""
    else:
        raise ConfigError(
            "the CA's key store needs a password and there is no terminal to ask on: "
            "set [ca] password in ca.conf, or KEYLIME_CA_PASSWORD"
        )
    if not password:
        raise ConfigError("You must specify a password! Set [ca] password in ca.conf, or KEYLIME_CA_PASSWORD")
    return password
