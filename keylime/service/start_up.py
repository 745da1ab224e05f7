"""How registrar and verifier begin: their flags, their configuration and what they say of both."""

import argparse
import logging
import os
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from keylime import keylime_logging
from keylime.command_line import OneLineParser
from keylime.config.settings import Settings
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS
from keylime.service.config_report import add_config_flags
from keylime.version import add_version


class Configuration(Protocol):
    """What a daemon's options come to."""

    @property
    def settings(self) -> Settings:
        """The options of its own component."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know, one line each."""


ConfigurationT = TypeVar("ConfigurationT", bound=Configuration)


def daemon_parser(program: str, description: str) -> argparse.ArgumentParser:
    """The flags of a daemon that has a database."""
    parser = OneLineParser(
        prog=program,
        allow_abbrev=False,  # a slip of the hand must not migrate anything
        description=description,
    )
    add_version(parser)
    add_config_flags(parser)
    parser.add_argument(
        "--migrate",
        action="store_true",
        help="bring the tables of the database up to date, say from which schema to which, and end",
    )
    return parser


def configured(
    component: str, load: Callable[[Mapping[str, str]], ConfigurationT], log: logging.Logger
) -> ConfigurationT:
    """The configuration, with logging set up by it. Says where it comes from. Raises ConfigError."""
    keylime_logging.setup(component, os.environ)
    config = load(os.environ)
    keylime_logging.log_sources(config.settings)
    for warning in config.warnings:
        log.warning("%s", warning)
    return config


def log_versions(log: logging.Logger) -> None:
    """Says which versions of the API are served."""
    log.info("Current API version: %s", CURRENT_VERSION)
    log.info("Other supported API versions: %s", ", ".join(SUPPORTED_VERSIONS[:-1]))
