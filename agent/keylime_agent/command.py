"""The command line of an agent: its flags, how it ends, and what it does before and after its work."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NoReturn

import uvloop

from keylime.checkup import Result, document, is_good, summary
from keylime.command_line import OneLineParser
from keylime.config.loader import load_settings
from keylime.config.settings import Settings
from keylime.errors import ConfigError, KeylimeError
from keylime.file_errors import file_errors_explained
from keylime.service.config_report import Components, add_config_flags, config_report
from keylime.service.daemon import ignore_reloads_for_now
from keylime.service.service_manager import ServiceManager
from keylime.version import add_version
from keylime_agent.registration import RegistrationForbidden

log = logging.getLogger("keylime_agent.main")
# EX_NOPERM of sysexits.h; the unit names it, because a restart cannot mend it.
FORBIDDEN = 77
_CONFIGURATION: Components = {"agent": (), "logging": ()}


@dataclass(frozen=True, slots=True)
class ProcessSurroundings:
    """What the process has of its own."""

    environ: Mapping[str, str]
    manager: ServiceManager
    stop: asyncio.Event


def _no_flags(_parser: argparse.ArgumentParser) -> None:
    pass


def _nothing_given(_arguments: argparse.Namespace) -> Mapping[str, str]:
    return {}


def _nothing_to_say(_arguments: argparse.Namespace) -> Iterable[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Flags:
    """Flags of one program: what they put into its environment, and what is to be said of them."""

    add: Callable[[argparse.ArgumentParser], None] = _no_flags
    environment: Callable[[argparse.Namespace], Mapping[str, str]] = _nothing_given
    remarks: Callable[[argparse.Namespace], Iterable[str]] = _nothing_to_say


@dataclass(frozen=True, slots=True)
class AgentProgram:
    """One of the agent's programs: what it is called, and how it examines, configures and does its work.

    `remarks` raises ConfigError for settings that cannot be used, and gives what is strange about them.
    `flags` are those that only this program has.
    """

    name: str
    description: str
    examination: str
    examine: Callable[[Mapping[str, str]], Iterator[Result]]
    remarks: Callable[[Settings, Mapping[str, str]], Iterable[str]]
    work: Callable[[ProcessSurroundings, AsyncExitStack], Awaitable[None]]
    flags: Flags = Flags()

    def main(self) -> None:
        """The console script."""
        parser = OneLineParser(prog=self.name, description=self.description)
        add_version(parser)
        add_config_flags(parser)
        parser.add_argument(
            "--check",
            action="store_true",
            help=f"examine {self.examination} of this machine, say what to type where one is not well, and "
            "end with status 0 or 1",
        )
        self.flags.add(parser)
        arguments = parser.parse_args()
        for remark in self.flags.remarks(arguments):
            print(f"{self.name}: {remark}", file=sys.stderr)
        try:
            os.environ.update(self.flags.environment(arguments))
            with file_errors_explained():
                if arguments.check:
                    self._check_machine(arguments)
                if config_report(arguments, _CONFIGURATION, self._check_config):
                    return
                uvloop.run(self._serve(dict(os.environ)))
        except KeylimeError as error:
            if arguments.json:
                print(json.dumps({"error": str(error)}))
            sys.stdout.flush()
            print(f"{self.name}: error: {error}", file=sys.stderr)
            sys.exit(FORBIDDEN if isinstance(error, RegistrationForbidden) else 1)

    def _check_machine(self, arguments: argparse.Namespace) -> NoReturn:
        if arguments.check_config or arguments.dump_config:
            raise ConfigError("--check stands alone, or with --json")
        results = []
        for result in self.examine(dict(os.environ)):
            results.append(result)
            if not arguments.json:
                print(result, flush=True)
        print(json.dumps(document(results), indent=2) if arguments.json else summary(results))
        sys.exit(0 if is_good(results) else 1)

    def _check_config(self) -> Iterable[str]:
        settings = load_settings("agent", environ=os.environ)
        return (*settings.warnings, *self.remarks(settings, os.environ))

    async def _serve(self, environ: Mapping[str, str]) -> None:
        stop = _stop_on_signals()
        ignore_reloads_for_now()
        manager = ServiceManager.from_environment(environ)
        # Errors of the TPM stack reach the log as ours do, once and with the command's name.
        os.environ.setdefault("TSS2_LOG", "all+NONE")
        async with AsyncExitStack() as stack:
            await self.work(ProcessSurroundings(environ, manager, stop), stack)
        log.info("agent stopped")


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
