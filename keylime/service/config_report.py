"""`--check-config` and `--dump-config` of the daemons: say what their configuration comes to, and end.

Nothing is made, opened or listened on; what is read is what the program itself would read at its start.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from keylime.config.effective import as_lines, as_tree, effective
from keylime.config.loader import load_settings
from keylime.config.settings import is_test_mode
from keylime.errors import ConfigError
from keylime.log_lines import plan_logging

# Options of each component that a program reads; an empty collection stands for all.
Components = Mapping[str, Collection[str]]


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Gives a daemon the flags."""
    questions = parser.add_mutually_exclusive_group()
    questions.add_argument(
        "--check-config",
        action="store_true",
        help="say whether the configuration can be used, and end with status 0 or 1",
    )
    questions.add_argument(
        "--dump-config",
        action="store_true",
        help="print each option's effective value and where it comes from, without secrets, and end",
    )
    parser.add_argument(
        "--json", action="store_true", help="with flags that ask for something: print one JSON object"
    )


def config_report(
    arguments: argparse.Namespace, components: Components, check: Callable[[], Iterable[str]]
) -> bool:
    """Answers what was asked for on standard output; False when nothing was.

    `check` makes the program's configuration and returns its warnings. Raises ConfigError for what keeps the
    program from starting; with --json that is part of the answer, and SystemExit is raised instead.
    """
    if arguments.dump_config:
        _dump(components, as_json=arguments.json)
    elif arguments.check_config:
        _check(components, check, as_json=arguments.json)
    elif arguments.json:
        raise ConfigError("--json goes with --check-config or --dump-config")
    return bool(arguments.dump_config or arguments.check_config)


def _dump(components: Components, *, as_json: bool) -> None:
    all_settings = {component: load_settings(component, environ=os.environ) for component in components}
    found = [
        one for component, only in components.items() for one in effective(all_settings[component], only)
    ]
    if as_json:
        files = [str(path) for settings in all_settings.values() for path in settings.files]
        print(json.dumps({"files": files, "configuration": as_tree(found)}, indent=2))
    else:
        print("\n".join(as_lines(found)))


def _check(components: Components, check: Callable[[], Iterable[str]], *, as_json: bool) -> None:
    try:
        warnings, files = _checked(components, check)
    except ConfigError as error:
        if not as_json:
            raise
        print(json.dumps({"ok": False, "error": str(error)}, indent=2))
        sys.exit(1)
    if as_json:
        answer = {"ok": True, "warnings": warnings, "files": [str(path) for path in files]}
        print(json.dumps(answer, indent=2))
        return
    for warning in warnings:
        print(f"warning: {warning}")
    read = ", ".join(map(str, files)) or "no file: all options have their defaults"
    print(f"configuration is good ({read})")


def _checked(components: Components, check: Callable[[], Iterable[str]]) -> tuple[list[str], list[Path]]:
    is_test_mode(os.environ)
    warnings = list(check())
    all_settings = [load_settings(component, environ=os.environ) for component in components]
    for settings in all_settings:
        if settings.component == "logging":
            plan_logging(settings)
            warnings += settings.warnings
    return list(dict.fromkeys(warnings)), [path for settings in all_settings for path in settings.files]
