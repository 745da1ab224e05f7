"""`keylime-policy`: creates policies, signs them, and tries them on stored evidence."""

import argparse
import datetime
import json

from keylime.policy.measured_boot import built_in_policies
from keylime_tenant.policy_tool.arguments import PROGRAM, build_parser
from keylime_tenant.policy_tool.check import run_check
from keylime_tenant.policy_tool.create_measured_boot import reference_state_text
from keylime_tenant.policy_tool.create_runtime import (
    RuntimeSources,
    create_runtime_policy,
    legacy_allowlist,
)
from keylime_tenant.policy_tool.files import write_output
from keylime_tenant.policy_tool.messages import Messages, run_program
from keylime_tenant.policy_tool.signing import SigningOrder, sign_runtime_policy

_UNUSABLE = 2  # of `check`, whose 1 says that the evidence was rejected


def main() -> None:
    """The console script."""
    parser = build_parser(built_in_policies().get_policy_names())
    options = parser.parse_args()
    messages = Messages(PROGRAM, getattr(options, "verbose", False))
    match options.action:
        case ("check",):
            run_program(PROGRAM, lambda: run_check(options, parser.error, messages), failed=_UNUSABLE)
        case ("create", "runtime"):
            run_program(PROGRAM, lambda: _create_runtime(options, messages), failed=1)
        case ("create", "measured-boot"):
            run_program(PROGRAM, lambda: _create_measured_boot(options, messages), failed=1)
        case ("sign", "runtime"):
            if (options.backend == "x509") != (options.cert_outfile is not None):
                parser.error("--backend x509 and --cert-outfile need each other")
            run_program(PROGRAM, lambda: _sign_runtime(options, messages), failed=1)
        case _:
            parser.print_help()


def _create_runtime(options: argparse.Namespace, messages: Messages) -> int:
    if options.algo and not (options.rootfs or options.ramdisk_dir):
        messages.warning("--algo hashes nothing without --rootfs or --ramdisk-dir")
    sources = RuntimeSources(
        base_policy=options.base_policy,
        allowlist=options.allowlist,
        excludes=options.excludelist,
        ima_list=options.ima_measurement_list,
        keyrings=options.keyrings,
        buffers=options.ima_buf,
        ignored_keyrings=tuple(options.ignored_keyrings),
        ima_keys=tuple(options.ima_keys),
        algorithm=options.algo,
        rootfs=options.rootfs,
        skip_paths=tuple(options.skip_path.split(",")),
        ramdisks=options.ramdisk_dir,
    )
    document = create_runtime_policy(sources, messages, local_time())
    text = legacy_allowlist(document) if options.show_legacy_allowlist else json.dumps(document)
    write_output("--output", options.output, text)
    return 0


def _create_measured_boot(options: argparse.Namespace, messages: Messages) -> int:
    text = reference_state_text(
        options.eventlog_file, messages, without_secure_boot=options.without_secureboot
    )
    write_output("--output", options.output, text)
    return 0


def _sign_runtime(options: argparse.Namespace, messages: Messages) -> int:
    order = SigningOrder(
        policy=options.runtime_policy,
        output=options.output,
        key_file=options.keyfile,
        new_key_file=options.keypath,
        backend=options.backend,
        certificate_file=options.cert_outfile,
    )
    sign_runtime_policy(order, messages, local_time())
    return 0


def local_time() -> datetime.datetime:
    """Now, with the local time zone."""
    return datetime.datetime.now().astimezone()


if __name__ == "__main__":
    main()
