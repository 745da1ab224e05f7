"""Alembic's entry point: everything is decided in keylime.database.migrate."""

from keylime.database.migrate import run_in_environment

run_in_environment()
