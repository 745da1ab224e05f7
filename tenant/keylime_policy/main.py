"""`keylime-policy`: creates policies, changes and signs them, and tries them on stored evidence."""

import argparse
import gc
import json
from collections.abc import Callable
from typing import NoReturn

from keylime.errors import ConfigError
from keylime.measured_boot.boot_policy import built_in_policies
from keylime.measured_boot.learning import to_json
from keylime_policy.arguments import PROGRAM, build_parser, package_sources
from keylime_policy.check import run_check
from keylime_policy.create_measured_boot import create_from_log
from keylime_policy.create_runtime import (
    RuntimeSources,
    create_runtime_policy,
    legacy_allowlist,
    summary,
)
from keylime_policy.edit import (
    Conversion,
    FailureUpdate,
    convert_policy,
    lint_file,
    merge_policies,
    show,
    show_difference,
    update_from_failure,
)
from keylime_policy.files import read_source, read_text, write_output
from keylime_policy.learned_boot import Update, learn_from_fleet, learn_from_log, update_reference
from keylime_policy.messages import Messages, run_program
from keylime_policy.signing import sign_runtime_policy
from keylime_policy.signing_order import Backend, SigningOrder
from keylime_policy.sources import SourceFile
from keylime_policy.times import local_time

_UNUSABLE = 2  # of `check`, whose 1 says that the evidence was rejected


def main() -> None:
    """The console script."""
    parser = build_parser(built_in_policies().get_policy_names())
    options = parser.parse_args()
    messages = Messages(PROGRAM, getattr(options, "verbose", False))
    match options.action:
        case ("check",):
            run_program(
                PROGRAM,
                lambda: run_check(options, parser.error, messages),
                failed=_UNUSABLE,
                as_json=options.json,
            )
        case ("diff",):
            run_program(
                PROGRAM,
                lambda: show_difference(options.old, options.new, as_json=options.json),
                failed=_UNUSABLE,
                as_json=options.json,
            )
        case ("lint",):
            run_program(
                PROGRAM,
                lambda: lint_file(options.policy, options.excludelist, as_json=options.json),
                failed=_UNUSABLE,
                as_json=options.json,
            )
        case ("show",):
            run_program(
                PROGRAM,
                lambda: show(options.policy, as_json=options.json),
                failed=1,
                as_json=options.json,
            )
        case ("merge",):
            run_program(PROGRAM, lambda: merge_policies(options.policies, options.output, messages), failed=1)
        case ("convert",):
            run_program(PROGRAM, lambda: _convert(options, messages), failed=1)
        case ("update",):
            run_program(PROGRAM, lambda: _update(options, messages), failed=1)
        case ("create", "runtime"):
            run_program(PROGRAM, lambda: _create_runtime(options, messages), failed=1)
        case ("create", "measured-boot"):
            run_program(PROGRAM, lambda: _create_measured_boot(options, messages), failed=1)
        case ("update-reference",):
            _check_update(options, parser.error)
            run_program(PROGRAM, lambda: _update_reference(options, messages), failed=1)
        case ("sign", "runtime"):
            if (options.backend == Backend.X509) != (options.cert_outfile is not None):
                parser.error("--backend x509 and --cert-outfile need each other")
            run_program(PROGRAM, lambda: _sign_runtime(options, messages), failed=1)
        case _:
            parser.print_help()


def _create_runtime(options: argparse.Namespace, messages: Messages) -> int:
    packages = package_sources(options)
    if options.algo and not (options.rootfs or options.ramdisk_dir or packages):
        messages.warning("--algo hashes nothing without --rootfs, --ramdisk-dir, packages or an image")
    sources = RuntimeSources(
        base_policy=options.base_policy,
        allowlist=options.allowlist,
        excludes=options.excludelist,
        distribution=options.distribution,
        ima_list=options.ima_measurement_list,
        fleet=tuple(options.for_fleet),
        keyrings=options.keyrings,
        buffers=options.ima_buf,
        ignored_keyrings=tuple(options.ignored_keyrings),
        ima_keys=tuple(options.ima_keys),
        algorithm=options.algo,
        rootfs=options.rootfs,
        skip_paths=tuple(options.skip_path.split(",")),
        ramdisks=options.ramdisk_dir,
        packages=packages,
    )
    gc.disable()  # there are no cycles in its large tables, and to look for them takes a seventh of its time
    document, status = create_runtime_policy(sources, messages, local_time())
    text = legacy_allowlist(document) if options.show_legacy_allowlist else json.dumps(document)
    write_output("--output", options.output, text)
    messages.note(summary(document, options.output))
    return status


def _convert(options: argparse.Namespace, messages: Messages) -> int:
    order = Conversion(
        policy=options.policy,
        excludes=options.excludelist,
        keys=tuple(options.ima_keys),
        output=options.output,
    )
    return convert_policy(order, messages)


def _update(options: argparse.Namespace, messages: Messages) -> int:
    order = FailureUpdate(
        policy=options.policy,
        findings=options.from_failure,
        only=tuple(options.only),
        force=options.force,
        output=options.output,
    )
    return update_from_failure(order, messages)


def _create_measured_boot(options: argparse.Namespace, messages: Messages) -> int:
    policy = options.policy or ("components" if options.for_fleet else "example")
    without = options.without_secureboot
    if options.for_fleet:
        if policy == "example":
            raise ConfigError("--for-fleet: makes reference states of policy `components` only")
        learned, status = learn_from_fleet(
            [read_source("--for-fleet", path) for path in options.for_fleet],
            messages,
            policy=policy,
            without_secure_boot=without,
        )
        state = to_json(learned)
    elif policy == "example":
        log = read_source("--eventlog-file", options.eventlog_file)
        state, status = create_from_log(log, messages, without_secure_boot=without)
    else:
        log = read_source("--eventlog-file", options.eventlog_file)
        learned, status = learn_from_log(log, messages, policy=policy, without_secure_boot=without)
        state = to_json(learned)
    write_output("--output", options.output, json.dumps(state, indent=2) + "\n")
    return status


def _check_update(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
    if options.kernel is None and (options.initrds or options.command_line is not None):
        refuse("--initrd and --command-line go with --kernel")
    if options.kernel is None and options.eventlog_file is None and not options.drop:
        refuse("nothing to do: give --kernel, --eventlog-file or --drop")


def _update_reference(options: argparse.Namespace, messages: Messages) -> int:
    update = Update(
        reference=read_source("update-reference", options.reference),
        boot_log=_read_if_given("--eventlog-file", options.eventlog_file),
        kernel=_read_if_given("--kernel", options.kernel),
        initrds=tuple(read_source("--initrd", path) for path in options.initrds),
        command_line=_command_line(options.command_line),
        name=options.name,
        dropped=tuple(options.drop),
    )
    document, status = update_reference(update, messages)
    write_output("--output", options.output, json.dumps(to_json(document), indent=2) + "\n")
    return status


def _read_if_given(option: str, path: str | None) -> SourceFile | None:
    return None if path is None else read_source(option, path)


def _command_line(given: str | None) -> str | None:
    """The command line itself, or the text of the file that `@` names."""
    if given is None or not given.startswith("@"):
        return given
    return read_text("--command-line", given[1:])


def _sign_runtime(options: argparse.Namespace, messages: Messages) -> int:
    order = SigningOrder(
        policy=options.runtime_policy,
        output=options.output,
        key_file=options.keyfile,
        new_key_file=options.keypath,
        backend=Backend(options.backend),
        certificate_file=options.cert_outfile,
        public_key_file=options.pubkey_outfile,
    )
    sign_runtime_policy(order, messages, local_time())
    return 0


if __name__ == "__main__":
    main()
