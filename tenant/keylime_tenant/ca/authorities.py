"""The authority that the tenant and `keylime_ca` work with: its directory, ca.conf, its password."""

from collections.abc import Callable, Mapping
from pathlib import Path

from keylime.config.loader import load_settings
from keylime.config.settings import work_dir
from keylime.pki.authority import Authority
from keylime.pki.ca_settings import CaSettings, ca_settings
from keylime.pki.file_names import CA_CERTIFICATE
from keylime_tenant.passwords import keystore_password, new_keystore_password

_DIRECTORY = "ca"  # inside the working directory


def authority_directory(flag: str | None, environ: Mapping[str, str]) -> Path:
    """The directory that a flag names; nothing or `default` mean the one in the working directory."""
    return work_dir(environ) / _DIRECTORY if flag in (None, "default") else Path(str(flag))


def load_ca_settings(environ: Mapping[str, str]) -> CaSettings:
    """ca.conf with its overrides. Raises ConfigError."""
    return ca_settings(load_settings("ca", environ=environ))


def open_or_create(directory: Path, settings: CaSettings, announce: Callable[[str], None]) -> Authority:
    """The authority in `directory`, made when there is none. Raises ConfigError."""
    if (directory / CA_CERTIFICATE).exists():
        return Authority.open(directory, keystore_password(settings.password), settings.subject)
    password = new_keystore_password(settings.password)
    announce("CA directory does not exist. Creating...")
    return Authority.create(directory, password, settings.subject)
