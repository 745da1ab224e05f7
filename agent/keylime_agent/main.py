"""keylime_agent: collects as root what only root can, drops privileges, then attests and takes payloads."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from typing import NoReturn

import uvloop

from keylime.checkup import document, is_good, summary
from keylime.config.loader import load_settings
from keylime.errors import ConfigError, KeylimeError
from keylime.file_errors import file_errors_explained
from keylime.secure_mount import (
    empty_secure_directory,
    unmount_secure_directory,
)
from keylime.service.config_report import Components, add_config_flags, config_report
from keylime.service.daemon import ignore_reloads_for_now
from keylime.service.service_manager import ServiceManager
from keylime.version import add_version
from keylime_agent.assembly import Agent
from keylime_agent.checkup import examine
from keylime_agent.config import agent_config, contact_remark
from keylime_agent.machine import meet_tpm
from keylime_agent.preparation import prepare
from keylime_agent.privileges import target_account
from keylime_agent.registration import RegistrationForbidden

log = logging.getLogger(__name__)
# EX_NOPERM of sysexits.h; the unit names it, because a restart cannot mend it.
FORBIDDEN = 77
_CONFIGURATION: Components = {"agent": (), "logging": ()}


def main() -> None:
    """The console script."""
    parser = argparse.ArgumentParser(
        prog="keylime_agent",
        description="Attests this machine; configured by agent.conf and KEYLIME_AGENT_*. SIGHUP reloads "
        "trusted_client_ca, a certificate for the same key, and logging.conf.",
    )
    add_version(parser)
    add_config_flags(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="examine TPM, logs, addresses and certificates of this machine, say what to type where one is "
        "not well, and end with status 0 or 1",
    )
    arguments = parser.parse_args()
    try:
        with file_errors_explained():
            if arguments.check:
                _check_machine(arguments)
            if config_report(arguments, _CONFIGURATION, _check_config):
                return
            uvloop.run(_serve(dict(os.environ)))
    except KeylimeError as error:
        sys.stdout.flush()
        print(f"keylime_agent: error: {error}", file=sys.stderr)
        sys.exit(FORBIDDEN if isinstance(error, RegistrationForbidden) else 1)


def _check_machine(arguments: argparse.Namespace) -> NoReturn:
    if arguments.check_config or arguments.dump_config:
        raise ConfigError("--check stands alone, or with --json")
    results = []
    for result in examine(dict(os.environ)):
        results.append(result)
        if not arguments.json:
            print(result, flush=True)
    print(json.dumps(document(results), indent=2) if arguments.json else summary(results))
    sys.exit(0 if is_good(results) else 1)


def _check_config() -> Iterable[str]:
    settings = load_settings("agent", environ=os.environ)
    config = agent_config(settings, os.environ)
    target_account(config.run_as)
    remark = contact_remark(config)
    return settings.warnings if remark is None else (*settings.warnings, remark)


async def _serve(environ: Mapping[str, str]) -> None:
    stop = _stop_on_signals()
    ignore_reloads_for_now()
    manager = ServiceManager.from_environment(environ)
    # Errors of the TPM stack reach the log as ours do, once and with the command's name.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    async with AsyncExitStack() as stack:
        prepared = prepare(environ, stack)
        stack.callback(unmount_secure_directory, prepared.secure)
        stack.callback(prepared.ima.close)
        stack.callback(prepared.boot_log.close)
        stack.callback(prepared.os_log.close)
        machine = meet_tpm(prepared, environ)
        # An agent that cannot even start leaves what is there as it is.
        stack.callback(empty_secure_directory, prepared.secure)
        stack.callback(machine.tpm.close)
        await Agent(prepared, machine, environ, manager, stop).run()
    log.info("agent stopped")


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


if __name__ == "__main__":
    main()
