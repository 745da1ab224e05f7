"""The authority that the tenant and `keylime_ca` work with: its directory, ca.conf, its password."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from keylime.config.loader import load_settings
from keylime.config.settings import work_dir
from keylime.errors import ConfigError
from keylime.pki.authority import Authority
from keylime.pki.ca_settings import CaSettings, ca_settings
from keylime.pki.file_names import CA_CERTIFICATE
from keylime_tenant.passwords import keystore_password, new_keystore_password

_DIRECTORY = "ca"  # inside the working directory
_DEFAULT = "default"


def authority_directory(flag: str | None, environ: Mapping[str, str]) -> Path:
    """The directory that a flag names; nothing or `default` mean the one in the working directory.

    Raises ConfigError for a bare word that is almost `default`, and no directory.
    """
    if flag is None or flag == _DEFAULT:
        return work_dir(environ) / _DIRECTORY
    # Whoever writes ./ means a directory.
    is_meant = "/" in flag or not difflib.get_close_matches(flag.lower(), [_DEFAULT], cutoff=0.75)
    if not is_meant and not Path(flag).exists():
        raise ConfigError(
            f"there is no directory {flag!r} for a CA; did you mean {_DEFAULT!r}? For a new CA in a "
            f"directory of that name write ./{flag}"
        )
    return Path(flag)


def load_ca_settings(environ: Mapping[str, str]) -> CaSettings:
    """ca.conf with its overrides. Raises ConfigError."""
    return ca_settings(load_settings("ca", environ=environ))


def open_or_create(directory: Path, settings: CaSettings, announce: Callable[[str], None]) -> Authority:
    """The authority in `directory`, made when there is none. Raises ConfigError."""
    if (directory / CA_CERTIFICATE).exists():
        return Authority.open(directory, keystore_password(settings), settings.subject)
    password = new_keystore_password(settings)
    # Its first half is matched by suites of the field.
    announce(f"CA directory does not exist. Creating... a new CA in {directory.absolute()}")
    return Authority.create(directory, password, settings.subject)
