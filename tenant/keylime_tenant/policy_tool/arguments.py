"""The flags of `keylime-policy`."""

import argparse
from collections.abc import Callable, Sequence

from keylime_tenant.policy_tool.algorithms import ALGORITHMS
from keylime_tenant.policy_tool.measured import LIVE_LIST
from keylime_tenant.policy_tool.signing import BACKENDS

PROGRAM = "keylime-policy"
DEFAULT_KEY_PATH = "keylime-ecdsa-key.pem"


def build_parser(boot_policy_names: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; `action` of its result is the words of the sub-command, empty without one."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Create, sign and try out policies for attested machines."
    )
    parser.set_defaults(action=())
    actions = parser.add_subparsers(title="actions", metavar="{create,sign,check}")
    create = actions.add_parser("create", help="make a policy from a machine that is known to be good")
    kinds = create.add_subparsers(title="kinds", metavar="{runtime,measured-boot}", required=True)
    _add_create_runtime(kinds.add_parser)
    _add_create_measured_boot(kinds.add_parser)
    sign = actions.add_parser("sign", help="sign a policy")
    _add_sign_runtime(sign.add_subparsers(title="kinds", metavar="{runtime}", required=True).add_parser)
    _add_check(actions.add_parser, boot_policy_names)
    return parser


def _add_create_runtime(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add("runtime", help="which files a machine may run, for its IMA list")
    parser.set_defaults(action=("create", "runtime"))
    _add_output(parser)
    parser.add_argument("-p", "--base-policy", metavar="FILE", help="start from this runtime policy")
    add_list_options(parser)
    parser.add_argument("-e", "--excludelist", metavar="FILE", help="regular expressions, one on a line")
    parser.add_argument(
        "-m",
        "--ima-measurement-list",
        metavar="FILE",
        nargs="?",
        const=LIVE_LIST,
        help=f"take what this IMA list shows; without FILE: {LIVE_LIST}",
    )
    parser.add_argument(
        "--ignored-keyrings",
        metavar="NAME",
        action="append",
        default=[],
        help="do not judge the keys of this keyring (repeatable; * for all)",
    )
    parser.add_argument(
        "--add-ima-signature-verification-key",
        metavar="FILE",
        action="append",
        default=[],
        dest="ima_keys",
        help="accept files signed by this key: certificate, public or private key (repeatable)",
    )
    parser.add_argument(
        "--show-legacy-allowlist",
        action="store_true",
        help="print lines of digest and path instead of the policy",
    )
    files = parser.add_argument_group("digests of files")
    files.add_argument(
        "--algo", choices=ALGORITHMS, help="hash for --rootfs and --ramdisk-dir; default: that of the rest"
    )
    files.add_argument("--rootfs", metavar="DIR", help="hash the files of root in this tree")
    files.add_argument(
        "-s", "--skip-path", metavar="LIST", default="", help="directories to pass over, comma separated"
    )
    files.add_argument("--ramdisk-dir", metavar="DIR", help="hash the files inside every initr* here")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """The flags for what to take from lists, which two programs share."""
    parser.add_argument(
        "-k", "--keyrings", action="store_true", help="take in the keys that the IMA list shows"
    )
    parser.add_argument(
        "-b", "--ima-buf", action="store_true", help="take in the other buffers that the IMA list shows"
    )
    parser.add_argument("-a", "--allowlist", metavar="FILE", help="lines of digest and path")


def _add_create_measured_boot(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add("measured-boot", help="what a machine may boot: a reference state for policy `example`")
    parser.set_defaults(action=("create", "measured-boot"))
    parser.add_argument(
        "-e",
        "--eventlog-file",
        metavar="FILE",
        required=True,
        help="the firmware's event log, e.g. /sys/kernel/security/tpm0/binary_bios_measurements",
    )
    parser.add_argument("-i", "--without-secureboot", action="store_true", help="do not demand Secure Boot")
    _add_output(parser)


def _add_sign_runtime(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add("runtime", help="sign a runtime policy")
    parser.set_defaults(action=("sign", "runtime"))
    parser.add_argument("-r", "--runtime-policy", metavar="FILE", required=True, help="what to sign")
    _add_output(parser)
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("-k", "--keyfile", metavar="FILE", help="elliptic-curve private key in PEM")
    keys.add_argument(
        "-p",
        "--keypath",
        metavar="FILE",
        default=DEFAULT_KEY_PATH,
        help=f"without --keyfile: write a new key here (default {DEFAULT_KEY_PATH})",
    )
    parser.add_argument(
        "-b",
        "--backend",
        choices=BACKENDS,
        default="ecdsa",
        help="x509: the signature has a certificate",
    )
    parser.add_argument(
        "-c", "--cert-outfile", metavar="FILE", help="write the certificate here (with --backend x509)"
    )


def _add_check(add: Callable[..., argparse.ArgumentParser], boot_policy_names: Sequence[str]) -> None:
    parser = add(
        "check",
        help="appraise stored evidence as a verifier would",
        description="Appraise stored evidence: with a quote as a verifier would, without one as far as the "
        "logs alone can tell. Exit status: 0 accepted, 1 rejected or incomplete, 2 unusable input.",
    )
    parser.set_defaults(action=("check",))
    evidence = parser.add_argument_group("evidence")
    evidence.add_argument("--ima-log", metavar="FILE", help="IMA list, ASCII or binary")
    evidence.add_argument("--boot-log", metavar="FILE", help="the firmware's event log")
    evidence.add_argument(
        "--quote", metavar="FILE", help="r...:...:..., or what the names of .msg, .sig, .pcrs begin with"
    )
    evidence.add_argument(
        "--ak", metavar="FILE", help="the key that signed the quote: TPM2B_PUBLIC (also in base64) or PEM"
    )
    evidence.add_argument("--nonce", metavar="TEXT", help="the nonce that the quote answers")
    evidence.add_argument(
        "--hash-alg", choices=ALGORITHMS, help="the bank that was asked for; default: the quote's"
    )
    policies = parser.add_argument_group("policies")
    runtime = policies.add_mutually_exclusive_group()
    runtime.add_argument("--runtime-policy", metavar="FILE", help="plain or signed")
    runtime.add_argument("--allowlist", metavar="FILE", help="lines of digest and path, or JSON")
    policies.add_argument("--exclude", metavar="FILE", help="exclude list to go with --allowlist")
    policies.add_argument(
        "--runtime-policy-sig-key", metavar="FILE", help="the runtime policy must be signed by this key"
    )
    policies.add_argument(
        "--ima-key",
        metavar="FILE",
        action="append",
        default=[],
        dest="ima_keys",
        help="accept files signed by this key, instead of the policy's keys (repeatable)",
    )
    policies.add_argument("--mb-policy", metavar="FILE", help="reference state for measured boot")
    policies.add_argument(
        "--mb-policy-name",
        choices=boot_policy_names,
        default="accept-all",
        help="the rules that read the reference state (default accept-all)",
    )
    policies.add_argument("--tpm-policy", metavar="JSON", help="values that PCRs must have")
    policies.add_argument(
        "--ignore-tomtou", action="store_true", help="accept violations (files changed while measured)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="default: stdout")
