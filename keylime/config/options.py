"""Every component's table by name, and the words of the environment that belong to no component."""

from collections.abc import Mapping

from keylime.config.model import ComponentTable, Kind, Option
from keylime.config.tables.agent import AGENT
from keylime.config.tables.ca import CA
from keylime.config.tables.logging import LOGGING
from keylime.config.tables.registrar import REGISTRAR
from keylime.config.tables.tenant import TENANT
from keylime.config.tables.verifier import VERIFIER

__all__ = ["ENVIRONMENT_NAMES", "TABLES", "ComponentTable", "Kind", "Option"]

TABLES: Mapping[str, ComponentTable] = {
    table.component: table for table in (AGENT, VERIFIER, REGISTRAR, TENANT, CA, LOGGING)
}

ENVIRONMENT_NAMES = frozenset({"KEYLIME_DIR", "KEYLIME_TEST"})
