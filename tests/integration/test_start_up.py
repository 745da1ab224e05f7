"""What a start does not load: each of these packages costs it some hundredths of a second, or tenths."""

import subprocess
import sys

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from keylime.database.schema import Schema
from keylime_registrar.schema import SCHEMA as REGISTRAR
from keylime_verifier.database.schema import SCHEMA as VERIFIER

_OF_OTHER_DATABASES = {
    "psycopg",
    "pymysql",
    "sqlalchemy.dialects.mysql",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
}
"""Than SQLite, which most installations have."""


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        (
            "keylime_verifier.main",
            {*_OF_OTHER_DATABASES, "aiohttp", "alembic", "rich", "tpm2_pytss", "yaml", "zmq"},
        ),
        ("keylime_registrar.main", {*_OF_OTHER_DATABASES, "aiohttp", "alembic", "rich", "yaml", "zmq"}),
        ("keylime_agent.main", {"alembic", "psycopg", "pymysql", "rich", "sqlalchemy"}),
        ("keylime_tenant.program", {"aiohttp", "asyncio", "cryptography", "msgspec", "rich", "ssl", "yaml"}),
    ],
)
def test_what_most_starts_do_not_need_is_not_loaded(module: str, unwanted: set[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    assert unwanted.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("schema", [REGISTRAR, VERIFIER], ids=["registrar", "verifier"])
def test_revisions_that_files_are_named_for_are_those_that_alembic_finds(schema: Schema) -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.migrations))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert [script.revision for script in scripts.walk_revisions()] == list(reversed(schema.revisions))
    assert scripts.get_heads() == [schema.newest]
