"""The flags of `keylime-policy`."""

import argparse
from collections.abc import Callable, Sequence

from keylime.command_line import OneLineParser
from keylime.measured_boot.pcr_sets import NAMES
from keylime.version import add_version
from keylime_policy.algorithms import ALGORITHMS
from keylime_policy.distributions import DISTRIBUTIONS
from keylime_policy.learned_boot import POLICIES
from keylime_policy.measured import LIVE_LIST
from keylime_policy.signing_order import Backend
from keylime_policy.source_options import (
    DEB_OPTIONS,
    DEFAULT_WORKERS,
    DPKG_OPTION,
    IMAGE_OPTION,
    MAX_WORKERS,
    RPM_OPTION,
    RPM_OPTIONS,
    PackageSource,
)

PROGRAM = "keylime-policy"
DEFAULT_KEY_PATH = "keylime-ecdsa-key.pem"


_GROUPS = (
    ("make a policy", ("create", "merge", "convert")),
    ("change one", ("update", "update-reference", "sign")),
    ("look at one", ("show", "diff", "lint")),
    ("try one", ("check",)),
)


class _Grouped(OneLineParser):
    """A parser whose help has its commands in groups, a line each."""

    def format_help(self) -> str:
        lines = [f"usage: {self.prog} COMMAND ...", "", self.description or "", ""]
        about = {
            choice.dest: choice.help
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for choice in action._choices_actions
        }
        for title, names in _GROUPS:
            lines += [f"{title}:", *(f"  {name:<18}{about[name]}" for name in names), ""]
        lines += [
            "options:",
            "  -h, --help        show this help and end",
            "  --version         print the version and end",
        ]
        lines += ["", f"`{self.prog} COMMAND --help` has the flags of each."]
        return "\n".join(lines) + "\n"


def build_parser(boot_policy_names: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; `action` of its result is the words of the sub-command, empty without one."""
    parser = _Grouped(
        prog=PROGRAM, description="Create, change, sign and try out policies for attested machines."
    )
    add_version(parser)
    parser.set_defaults(action=())
    names = ",".join(name for _, group in _GROUPS for name in group)
    actions = parser.add_subparsers(title="actions", metavar=f"{{{names}}}", parser_class=OneLineParser)
    create = actions.add_parser("create", help="make a policy from a machine or software known to be good")
    kinds = create.add_subparsers(title="kinds", metavar="{runtime,measured-boot}", required=True)
    _add_create_runtime(kinds.add_parser)
    _add_create_measured_boot(kinds.add_parser)
    _add_merge(actions.add_parser)
    _add_convert(actions.add_parser)
    _add_update(actions.add_parser)
    _add_update_reference(actions.add_parser)
    sign = actions.add_parser("sign", help="sign a policy")
    _add_sign_runtime(sign.add_subparsers(title="kinds", metavar="{runtime}", required=True).add_parser)
    _add_show(actions.add_parser)
    _add_diff(actions.add_parser)
    _add_lint(actions.add_parser)
    _add_check(actions.add_parser, boot_policy_names)
    return parser


def _add_merge(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add("merge", help="one runtime policy that allows what any of several allows")
    parser.set_defaults(action=("merge",))
    parser.add_argument("policies", metavar="POLICY", nargs="+", help="runtime policies, plain or signed")
    _add_output(parser)


def _add_convert(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add("convert", help="a current runtime policy of an old policy or allowlist")
    parser.set_defaults(action=("convert",))
    parser.add_argument(
        "policy", metavar="FILE", help="a runtime policy of any version, or an allowlist in lines or JSON"
    )
    parser.add_argument("-e", "--excludelist", metavar="FILE", help="regular expressions, one on a line")
    _add_ima_keys(parser)
    _add_output(parser)


def _add_update(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add(
        "update",
        help="add to a runtime policy what a rejected machine showed",
        description="Add the digests of findings to a runtime policy, after you know why they are there. "
        "What no policy can make right is named, and the exit status is then 3.",
    )
    parser.set_defaults(action=("update",))
    parser.add_argument("policy", metavar="POLICY", help="the runtime policy")
    parser.add_argument(
        "--from-failure",
        metavar="FILE",
        required=True,
        help="the output of `keylime-policy check --json` or `keylime_tenant --json -c cvstatus`",
    )
    parser.add_argument(
        "--only",
        metavar="PATH",
        action="append",
        default=[],
        help="take only what is about this path (repeatable)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="take also files that their own signature contradicts, and boot_aggregate",
    )
    _add_output(parser)


def _add_show(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add("show", help="print a runtime policy or a reference state, for people")
    parser.set_defaults(action=("show",))
    parser.add_argument("policy", metavar="POLICY")
    parser.add_argument("--json", action="store_true", help="print its document, indented, sorted")


def _add_diff(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add(
        "diff",
        help="what one policy allows more and less than another",
        description="Compare two runtime policies, or two reference states for measured boot, rule by rule. "
        "Exit status: 0 the same rules, 1 others, 2 unusable input.",
    )
    parser.set_defaults(action=("diff",))
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _add_lint(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add(
        "lint",
        help="find rules that do something else than their author thinks",
        description="Look for rules that match everything, paths that can never match, expressions that are "
        "wider than they look, names with a wrong beginning. Exit status: 0 nothing found, 1 remarks, 2 "
        "unusable input.",
    )
    parser.set_defaults(action=("lint",))
    parser.add_argument(
        "policy", metavar="FILE", help="a runtime policy, an allowlist, an exclude list or a reference state"
    )
    parser.add_argument(
        "-e", "--excludelist", metavar="FILE", help="an exclude list that is used with the policy"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _add_create_runtime(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add("runtime", help="which files a machine may run, for its IMA list")
    parser.set_defaults(action=("create", "runtime"))
    _add_output(parser)
    parser.add_argument(
        "--show-legacy-allowlist",
        action="store_true",
        help="print lines of digest and path instead of the policy",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    lists = parser.add_argument_group("lists and older policies")
    lists.add_argument("-p", "--base-policy", metavar="FILE", help="start from this runtime policy")
    add_list_options(lists)
    lists.add_argument(
        "--for-fleet",
        metavar="LIST",
        nargs="+",
        default=[],
        help="one policy for the machines of these IMA lists, and a table of which each rule would break",
    )
    lists.add_argument(
        "-m",
        "--ima-measurement-list",
        metavar="FILE",
        nargs="?",
        const=LIVE_LIST,
        help=f"take what this IMA list shows; without FILE: {LIVE_LIST}",
    )
    rules = parser.add_argument_group("what is not judged, and who vouches for files")
    rules.add_argument("-e", "--excludelist", metavar="FILE", help="regular expressions, one on a line")
    rules.add_argument(
        "--distribution",
        choices=DISTRIBUTIONS,
        help="exclude what package managers and daemons of this distribution make; prints the expressions",
    )
    rules.add_argument(
        "--ignored-keyrings",
        metavar="NAME",
        action="append",
        default=[],
        help="do not judge the keys of this keyring (repeatable; * for all)",
    )
    _add_ima_keys(rules)
    files = parser.add_argument_group("digests of files")
    files.add_argument("--algo", choices=ALGORITHMS, help="hash of files; default: that of the rest")
    files.add_argument("--rootfs", metavar="DIR", help="hash the files of root in this tree")
    files.add_argument(
        "-s", "--skip-path", metavar="LIST", default="", help="directories to pass over, comma separated"
    )
    files.add_argument("--ramdisk-dir", metavar="DIR", help="hash the files inside every initr* here")
    _add_packages(parser)


def _add_packages(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("packages and images")
    group.add_argument(
        "--dpkg-database",
        metavar="ROOT",
        nargs="?",
        const="/",
        help="hash the files of installed Debian packages below ROOT (default /), if they are as packed",
    )
    group.add_argument(
        "--rpm-database",
        metavar="ROOT",
        nargs="?",
        const="/",
        help="take the digests that the RPM database of the tree ROOT has (default /)",
    )
    group.add_argument(
        "--local-rpm-repo", metavar="DIR", help="take the digests in the packages of an RPM repository here"
    )
    group.add_argument("--remote-rpm-repo", metavar="URL", help="the same over http or https")
    group.add_argument(
        "--local-deb-repo", metavar="DIR", help="hash the files in the packages of a Debian repository here"
    )
    group.add_argument("--remote-deb-repo", metavar="URL", help="the same over http or https")
    group.add_argument(
        "--deb-suite", metavar="NAME", help="such as bookworm; without it, the index is at the top"
    )
    group.add_argument(
        "--deb-component",
        metavar="NAME",
        action="append",
        default=[],
        help="such as main (repeatable; default: all)",
    )
    group.add_argument(
        "--deb-architecture",
        metavar="NAME",
        action="append",
        default=[],
        help="such as arm64 (repeatable; default: that of this machine)",
    )
    group.add_argument(
        "--repository-key",
        metavar="FILE",
        action="append",
        default=[],
        help="the OpenPGP key that signs the repository (repeatable)",
    )
    group.add_argument(
        "--unsigned-repository", action="store_true", help="read repositories whoever signed them, or nobody"
    )
    group.add_argument(
        "--max-workers",
        metavar="N",
        type=_workers,
        default=DEFAULT_WORKERS,
        help=f"how many packages are read at once (default {DEFAULT_WORKERS})",
    )
    group.add_argument(
        "--oci-image", metavar="DIR", help="hash the files of a container image (OCI directory)"
    )


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {MAX_WORKERS}, not {text!r}")
    return int(text)


def package_sources(options: argparse.Namespace) -> tuple[PackageSource, ...]:
    """The sources that the flags of packages and images name."""
    given = vars(options)
    return tuple(
        PackageSource(
            option=option,
            where=where,
            keys=tuple(options.repository_key),
            unsigned=options.unsigned_repository,
            workers=options.max_workers,
            suite=options.deb_suite,
            components=tuple(options.deb_component),
            architectures=tuple(options.deb_architecture),
        )
        for option in (DPKG_OPTION, RPM_OPTION, *RPM_OPTIONS, *DEB_OPTIONS, IMAGE_OPTION)
        if (where := given[option.removeprefix("--").replace("-", "_")]) is not None
    )


def add_list_options(parser: argparse._ActionsContainer) -> None:
    """The flags for what to take from lists, which two programs share."""
    parser.add_argument(
        "-k", "--keyrings", action="store_true", help="take in the keys that the IMA list shows"
    )
    parser.add_argument(
        "-b", "--ima-buf", action="store_true", help="take in the other buffers that the IMA list shows"
    )
    parser.add_argument("-a", "--allowlist", metavar="FILE", help="lines of digest and path")


def _add_create_measured_boot(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add("measured-boot", help="what a machine may boot: a reference state for measured boot")
    parser.set_defaults(action=("create", "measured-boot"))
    logs = parser.add_mutually_exclusive_group(required=True)
    logs.add_argument(
        "-e",
        "--eventlog-file",
        metavar="FILE",
        help="the firmware's event log, e.g. /sys/kernel/security/tpm0/binary_bios_measurements",
    )
    logs.add_argument(
        "--for-fleet",
        metavar="LOG",
        nargs="+",
        help="one reference state for the machines of these event logs, and a table of which of them each "
        "rule would break (for policy `components`)",
    )
    parser.add_argument(
        "--policy",
        choices=("example", *POLICIES),
        help="whose rules it is for: `components` for any boot chain, with variants; the others by chain "
        "(default `example`, with --for-fleet `components`)",
    )
    parser.add_argument("-i", "--without-secureboot", action="store_true", help="do not demand Secure Boot")
    _add_output(parser)


def _add_update_reference(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add(
        "update-reference",
        help="bless the next kernel before the reboot, or drop an old one",
        description="Add a boot to a reference state of policy `components` as a further variant, from its "
        "event log or from the files that will be booted, or drop boots. Kernel, initrds and command line "
        "belong together: the result accepts the boots of before and the new one, and nothing mixed.",
    )
    parser.set_defaults(action=("update-reference",))
    parser.add_argument("reference", metavar="REFERENCE", help="the reference state")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-e", "--eventlog-file", metavar="FILE", help="take what this event log shows")
    source.add_argument("--kernel", metavar="FILE", help="the next kernel, or unified kernel image")
    parser.add_argument(
        "--initrd",
        metavar="FILE",
        action="append",
        default=[],
        dest="initrds",
        help="its initrd (repeatable, in the order in which they are loaded)",
    )
    parser.add_argument(
        "--command-line",
        metavar="TEXT",
        help="its command line as it is measured: with GRUB the path of the kernel first; @FILE for a file",
    )
    parser.add_argument("--name", metavar="NAME", help="the new boot's name (default: the kernel's)")
    parser.add_argument(
        "--drop", metavar="NAME", action="append", default=[], help="take this boot away (repeatable)"
    )
    _add_output(parser)


def _add_sign_runtime(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add("runtime", help="sign a runtime policy")
    parser.set_defaults(action=("sign", "runtime"))
    parser.add_argument("-r", "--runtime-policy", metavar="FILE", required=True, help="what to sign")
    _add_output(parser)
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "-k",
        "--keyfile",
        metavar="FILE",
        help="elliptic-curve private key in PEM; or pkcs11:token=...;object=...?module-path=... for one in a "
        "token or TPM",
    )
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
        choices=tuple(Backend),
        default="ecdsa",
        help="x509: the signature has a certificate",
    )
    parser.add_argument(
        "-c", "--cert-outfile", metavar="FILE", help="write the certificate here (with --backend x509)"
    )
    parser.add_argument(
        "--pubkey-outfile", metavar="FILE", help="write the public key here, for --runtime-policy-sig-key"
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
        "--os-log", metavar="FILE", help="the operating system's own, /run/log/systemd/tpm2-measure.log"
    )
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
    policies.add_argument(
        "--explained-pcrs",
        choices=NAMES,
        default="automatic",
        help="which PCRs the logs of the boot must explain, as a verifier's measured_boot_explained_pcrs",
    )
    policies.add_argument("--tpm-policy", metavar="JSON", help="values that PCRs must have")
    policies.add_argument(
        "--ignore-tomtou", action="store_true", help="accept violations (files changed while measured)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _add_ima_keys(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--add-ima-signature-verification-key",
        metavar="FILE",
        action="append",
        default=[],
        dest="ima_keys",
        help="accept files signed by this key: certificate, public or private key (repeatable)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="default: stdout")
