"""`keylime_sign_runtime_policy`: the older form of `keylime-policy sign runtime`, with its own flags."""

import argparse
from typing import NoReturn

from keylime.command_line import OneLineParser
from keylime.version import add_version
from keylime_policy.messages import Messages, run_program
from keylime_policy.signing import sign_runtime_policy
from keylime_policy.signing_order import Backend, SigningOrder
from keylime_policy.times import local_time

_PROGRAM = "keylime_sign_runtime_policy"


def main() -> NoReturn:
    """The console script."""
    options = _parser().parse_args()
    order = SigningOrder(
        policy=options.runtime_policy,
        output=options.output_file,
        key_file=options.keyfile,
        new_key_file=options.keypath,
        backend=Backend(options.backend),
        certificate_file=options.certificate_output_file,
        validate=False,
    )
    run_program(_PROGRAM, lambda: _sign(order), failed=1)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=_PROGRAM, description="Sign a runtime policy (see also: keylime-policy sign runtime)."
    )
    add_version(parser)
    parser.add_argument("-r", "--runtime_policy", metavar="FILE", required=True)
    parser.add_argument("-o", "--output_file", metavar="FILE", required=True)
    parser.add_argument("-k", "--keyfile", metavar="FILE", help="elliptic-curve private key in PEM")
    parser.add_argument(
        "-p", "--keypath", metavar="FILE", default="keylime-ecdsa-key", help="without -k: a new key"
    )
    parser.add_argument("-b", "--backend", choices=tuple(Backend), default="ecdsa")
    parser.add_argument("-c", "--certificate_output_file", metavar="FILE", default="certificate.crt")
    return parser


def _sign(order: SigningOrder) -> int:
    sign_runtime_policy(order, Messages(_PROGRAM), local_time())
    return 0
