"""A component's settings from the disk and the environment: files found and read, then joined and checked."""

import pwd
from collections.abc import Mapping
from pathlib import Path

from keylime.config.files import find_files
from keylime.config.options import TABLES
from keylime.config.settings import Settings, join_settings
from keylime.safe_paths import Owners


def load_settings(
    component: str,
    *,
    environ: Mapping[str, str],
    etc: Path = Path("/etc/keylime"),
    usr_etc: Path = Path("/usr/etc/keylime"),
) -> Settings:
    """The settings of a component (a key of TABLES).

    Raises ConfigError, which names file, section, option and remedy, for a value that cannot be used, a file
    or directory that cannot be read, and secrets that everybody can read.
    """
    named = environ.get(f"KEYLIME_{component.upper()}_CONFIG")
    found = find_files(TABLES[component], named, etc, usr_etc, _owners(component, environ))
    return join_settings(component, found.files, environ, found.warnings)


def _owners(component: str, environ: Mapping[str, str]) -> Owners:
    """Who may change configuration: for an agent also the user that its environment says it will run as.

    What the file itself says about that cannot vouch for the file.
    """
    run_as = environ.get("KEYLIME_AGENT_RUN_AS", "").strip('" \t').partition(":")[0]
    if component != "agent" or not run_as:
        return Owners.of_service()
    try:
        account = pwd.getpwnam(run_as)
    except (KeyError, ValueError):
        return Owners.of_service()  # reported as an option that cannot be used
    return Owners.of_service((account.pw_uid, account.pw_gid))
