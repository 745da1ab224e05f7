"""`keylime_create_policy`: the older form of `keylime-policy create runtime`, with its own flags."""

import argparse
import json
from typing import NoReturn

from keylime.command_line import OneLineParser
from keylime.version import add_version
from keylime_policy.arguments import add_list_options
from keylime_policy.create_runtime import RuntimeSources, create_runtime_policy
from keylime_policy.files import write_output
from keylime_policy.measured import LIVE_LIST
from keylime_policy.messages import Messages, run_program
from keylime_policy.source_options import RPM_OPTIONS, PackageSource
from keylime_policy.times import local_time

_PROGRAM = "keylime_create_policy"


def main() -> NoReturn:
    """The console script."""
    options = _parser().parse_args()
    run_program(_PROGRAM, lambda: _create(options), failed=1)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=_PROGRAM, description="Make a runtime policy (see also: keylime-policy create runtime)."
    )
    add_version(parser)
    parser.add_argument("-B", "--base-policy", metavar="FILE", help="start from this runtime policy")
    add_list_options(parser)
    parser.add_argument(
        "-m",
        "--ima-measurement-list",
        metavar="FILE",
        default=LIVE_LIST,
        help=f"take what this IMA list shows (default {LIVE_LIST}; /dev/null for nothing)",
    )
    parser.add_argument("-i", "--ignored-keyrings", metavar="NAME", action="append", default=[])
    parser.add_argument("-o", "--output", metavar="FILE", help="default: stdout")
    parser.add_argument("--no-hashes", action="store_true", help="take no digests of files from the IMA list")
    parser.add_argument(
        "-A",
        "--add-ima-signature-verification-key",
        metavar="FILE",
        action="append",
        default=[],
        dest="ima_keys",
    )
    parser.add_argument("-e", "--exclude", "--excludelist", metavar="FILE", dest="excludelist")
    parser.add_argument("-l", "--local-repo", metavar="DIR", help="an RPM repository here")
    parser.add_argument("-r", "--remote-repo", metavar="URL", help="an RPM repository over http or https")
    return parser


def _create(options: argparse.Namespace) -> int:
    sources = RuntimeSources(
        base_policy=options.base_policy,
        allowlist=options.allowlist,
        excludes=options.excludelist,
        ima_list=options.ima_measurement_list,
        hashes=not options.no_hashes,
        keyrings=options.keyrings,
        buffers=options.ima_buf,
        ignored_keyrings=tuple(options.ignored_keyrings),
        ima_keys=tuple(options.ima_keys),
        packages=tuple(
            PackageSource(option=option, where=where)
            for option, where in zip(RPM_OPTIONS, (options.local_repo, options.remote_repo), strict=True)
            if where is not None
        ),
    )
    document, _ = create_runtime_policy(sources, Messages(_PROGRAM), local_time())
    write_output("--output", options.output, json.dumps(document) + "\n")
    return 0  # as scripts know it: what the policy does not accept is told in warnings
