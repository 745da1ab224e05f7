"""`keylime_convert_runtime_policy`: an old allowlist or policy as a current runtime policy."""

import argparse
import sys
from typing import NoReturn

from keylime.command_line import OneLineParser
from keylime.errors import ConfigError
from keylime.ima.allowlist import convert_allowlist, unread_members, upgrade_runtime_policy
from keylime.ima.keyrings import Keyring
from keylime.ima.runtime_policy import parse_runtime_policy
from keylime.version import add_version
from keylime_policy.create_runtime import verification_keys
from keylime_policy.files import read_text, write_output
from keylime_policy.messages import Messages, run_program
from keylime_policy.policies import load_excludes
from keylime_policy.sources import blaming
from keylime_policy.times import local_time, timestamp_of

_PROGRAM = "keylime_convert_runtime_policy"


def main() -> NoReturn:
    """The console script."""
    parser = _parser()
    if len(sys.argv) == 1:
        parser.print_help()
        sys.exit(0)
    options = parser.parse_args()
    run_program(_PROGRAM, lambda: _convert(options), failed=1)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=_PROGRAM, description="Make a current runtime policy of an old allowlist or policy."
    )
    add_version(parser)
    parser.add_argument("-a", "--allowlist", metavar="FILE", help="lines of digest and path, or JSON")
    parser.add_argument("-r", "--runtime_policy", metavar="FILE", help="a runtime policy of any version")
    parser.add_argument("-e", "--excludelist", metavar="FILE", help="regular expressions, one on a line")
    parser.add_argument(
        "-v", "--verification_keys", metavar="FILE", nargs="+", default=[], help="keys that sign files"
    )
    parser.add_argument("-o", "--output_file", metavar="FILE", required=True)
    return parser


def _convert(options: argparse.Namespace) -> int:
    if (options.allowlist is None) == (options.runtime_policy is None):
        raise ConfigError("give either --allowlist or --runtime_policy")
    excludes = "" if options.excludelist is None else read_text("--excludelist", options.excludelist)
    if options.excludelist is not None:
        load_excludes("--excludelist", options.excludelist)  # names the line that is wrong
    keys = Keyring(tuple(verification_keys("--verification_keys", options.verification_keys)))
    stamp = timestamp_of(local_time())
    if options.allowlist is not None:
        text = read_text("--allowlist", options.allowlist)
        with blaming("--allowlist", options.allowlist):
            policy = convert_allowlist(text, excludes, keys=keys, timestamp=stamp)
    else:
        text = read_text("--runtime_policy", options.runtime_policy)
        with blaming("--runtime_policy", options.runtime_policy):
            policy = upgrade_runtime_policy(text, excludes, keys=keys, timestamp=stamp)
    Messages(_PROGRAM).warnings([*unread_members(text), *parse_runtime_policy(policy).warnings])
    write_output("--output_file", options.output_file, policy)
    return 0
