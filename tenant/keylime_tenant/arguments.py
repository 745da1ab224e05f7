"""The command line of `keylime_tenant`: flags, the rules between them, and warnings about old ones."""

import argparse
import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

DEFAULT_AGENT_ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"

# Commands that upload a runtime policy, and therefore need one.
_UPLOADS = frozenset({"addruntimepolicy", "updateruntimepolicy", "addallowlist"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """One command line, still as the operator wrote it: None means that a flag was not given."""

    command: str = "add"
    json: bool = False
    push_model: bool = False
    agent_ip: str | None = None
    agent_port: int | None = None
    registrar_ip: str | None = None
    registrar_port: int | None = None
    cv_targethost: str | None = None
    verifier_ip: str | None = None
    verifier_port: int | None = None
    verifier_id: str | None = None
    verifier_check: bool = True
    agent_uuid: str | None = None
    file: str | None = None
    ca_dir: str | None = None
    include_dir: str | None = None
    keyfile: str | None = None
    payload: str | None = None
    verify: bool = False
    tpm_policy: str | None = None
    allowlist: str | None = None
    exclude: str | None = None
    allowlist_name: str | None = None
    allowlist_url: str | None = None
    runtime_policy: str | None = None
    runtime_policy_url: str | None = None
    runtime_policy_checksum: str | None = None
    runtime_policy_sig_key: str | None = None
    runtime_policy_name: str | None = None
    verification_keys: tuple[str, ...] = ()
    verification_key_sigs: tuple[str, ...] = ()
    verification_key_sig_keys: tuple[str, ...] = ()
    verification_key_urls: tuple[str, ...] = ()
    verification_key_sig_urls: tuple[str, ...] = ()
    verification_key_sig_url_keys: tuple[str, ...] = ()
    mb_policy: str | None = None
    mb_policy_name: str | None = None
    agent_api_version: str | None = None
    supported_version: str | None = None

    @property
    def policy_name(self) -> str | None:
        """The named runtime policy; `--allowlist-name` is its old spelling."""
        return self.runtime_policy_name or self.allowlist_name

    @property
    def api_version(self) -> str | None:
        """The agent's REST version when the operator fixes it; `--supported-version` is the old spelling."""
        return self.agent_api_version or self.supported_version


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """The arguments in `argv`. Prints usage and exits with 2 when a flag, or a combination, is wrong."""
    parser = build_parser()
    values = vars(parser.parse_args(argv))
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    arguments = Arguments(**{**values, **lists})
    problem = combination_problem(arguments)
    if problem is not None:
        parser.error(problem)
    return arguments


def combination_problem(arguments: Arguments) -> str | None:
    """What is wrong between the policy flags, in the words that scripts match; None when nothing is."""
    has_allowlist = bool(arguments.allowlist or arguments.allowlist_url)
    has_policy = bool(arguments.runtime_policy or arguments.runtime_policy_url)
    if arguments.command in _UPLOADS and not has_allowlist and not has_policy:
        return "--allowlist or --runtime_policy is required to add a runtime policy"
    if arguments.exclude and not has_allowlist:
        return "--exclude cannot be used without an --allowlist"
    if arguments.allowlist and arguments.allowlist_url:
        return "--allowlist and --allowlist-url cannot be specified at the same time"
    if arguments.runtime_policy and arguments.runtime_policy_url:
        return "--runtime_policy and --runtime_policy-url cannot be specified at the same time"
    if arguments.runtime_policy_url and not arguments.runtime_policy_checksum:
        return "--runtime_policy-url must have --runtime_policy-checksum to verifier integrity"
    if arguments.runtime_policy_checksum and not has_policy:
        return "--runtime_policy-checksum must have either --runtime_policy or --runtime_policy-url"
    if has_allowlist and has_policy:
        return "--allowlist and --runtime-policy cannot be specified at the same time"
    return None


def unknown_command(command: str, known: Collection[str]) -> str:
    """The error text for a command word that does not exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(command, sorted(known), n=1)
    advice = f"did you mean {nearest[0]!r}?" if nearest else f"known are: {', '.join(sorted(known))}"
    return f"Invalid command specified: {command} ({advice})"


def deprecations(arguments: Arguments) -> tuple[str, ...]:
    """One warning for each old flag in use."""
    old = (
        (arguments.allowlist, "--allowlist", "--runtime-policy"),
        (arguments.allowlist_url, "--allowlist-url", "--runtime-policy-url"),
        (arguments.exclude, "--exclude", '--runtime-policy with "excludes" in the policy'),
        (arguments.allowlist_name, "--allowlist-name", "--runtime-policy-name"),
        (arguments.supported_version, "--supported-version", "--agent-api-version"),
        (
            arguments.verification_keys or arguments.verification_key_urls,
            "--signature-verification-key",
            '--runtime-policy with "verification-keys" in the policy',
        ),
    )
    return tuple(f"{flag} is deprecated, use {instead}" for value, flag, instead in old if value)


def build_parser() -> argparse.ArgumentParser:
    """All flags of the tenant, with the defaults of Arguments."""
    parser = argparse.ArgumentParser(
        prog="keylime_tenant",
        description="Add agents to a verifier, remove them, and ask verifier and registrar about them.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("-c", "--command", metavar="COMMAND", help="what to do (default: add)")
    add("--json", action="store_true", help="print one JSON document on stdout, everything else on stderr")
    add(
        "--push-model",
        action="store_true",
        help="for agents that attest by themselves (not available in this release)",
    )
    _add_addresses(parser)
    _add_payload(parser)
    _add_policies(parser)
    _add_verification_keys(parser)
    return parser


def _add_addresses(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("who is meant").add_argument
    add("-t", "--targethost", dest="agent_ip", metavar="ADDRESS", help="agent (default: as registered)")
    add("-tp", "--targetport", dest="agent_port", type=_port, metavar="PORT", help="port of the agent")
    add("-r", "--registrarhost", dest="registrar_ip", metavar="ADDRESS", help="registrar")
    add(
        "-rp",
        "--registrarport",
        dest="registrar_port",
        type=_port,
        metavar="PORT",
        help="port of the registrar",
    )
    add("--cv_targethost", metavar="ADDRESS", help="agent as the verifier reaches it (default: as -t)")
    # `-v` at the end of a line, its address lost in a copied command, means the configured verifier.
    add("-v", "--cv", dest="verifier_ip", nargs="?", metavar="ADDRESS", help="verifier")
    add("-vp", "--cvport", dest="verifier_port", type=_port, metavar="PORT", help="port of the verifier")
    add("-vi", "--cvid", dest="verifier_id", metavar="ID", help="only agents of the verifier with this id")
    add(
        "-nvc",
        "--no-verifier-check",
        dest="verifier_check",
        action="store_false",
        help="do not ask the verifier who owns the agent before deleting or reactivating it",
    )
    add("-u", "--uuid", dest="agent_uuid", metavar="ID", help=f"agent id (default: {DEFAULT_AGENT_ID})")
    add("--agent-api-version", metavar="X.Y", help="REST version of the agent (default: negotiated)")
    add("--supported-version", metavar="X.Y", help="deprecated spelling of --agent-api-version")


def _add_payload(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("payload, delivered after the first good attestation").add_argument
    add("-f", "--file", metavar="FILE", help="encrypt and deliver this file")
    add(
        "--cert",
        dest="ca_dir",
        metavar="DIR",
        help="deliver a certificate package made by the CA in DIR or 'default'",
    )
    add(
        "--include", dest="include_dir", metavar="DIR", help="add the files of DIR to the certificate package"
    )
    add("-k", "--key", dest="keyfile", metavar="FILE", help="keys made before: three base64 lines")
    add("-p", "--payload", metavar="FILE", help="payload encrypted before with the keys of -k")
    add("--verify", action="store_true", help="wait until the agent proves that it holds the payload's key")


def _add_policies(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("policies").add_argument
    add("--tpm_policy", metavar="JSON", help="PCR numbers to accepted hex values")
    add("--runtime-policy", "--runtime_policy", metavar="FILE", help="runtime policy, plain or signed (DSSE)")
    add("--runtime-policy-url", metavar="URL", help="download the runtime policy")
    add("--runtime-policy-checksum", metavar="HEX", help="SHA-256 of the runtime policy")
    add(
        "--runtime-policy-sig-key", metavar="FILE", help="public key that must have signed the runtime policy"
    )
    add("--runtime-policy-name", metavar="NAME", help="named runtime policy of the verifier")
    add("--mb-policy", "--mb_refstate", metavar="FILE", help="measured boot reference state, or 'default'")
    add("--mb-policy-name", metavar="NAME", help="named measured boot policy of the verifier")
    add("--allowlist", metavar="FILE", help="deprecated: allowlist, converted to a runtime policy")
    add("--allowlist-url", metavar="URL", help="deprecated: download the allowlist")
    add("--allowlist-name", metavar="NAME", help="deprecated spelling of --runtime-policy-name")
    add("--exclude", metavar="FILE", help="deprecated: one regular expression in each line, with --allowlist")


def _add_verification_keys(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "keys of IMA file signatures (deprecated, put them in the policy)"
    ).add_argument
    base = "--signature-verification-key"
    add(
        base,
        "--sign_verification_key",
        dest="verification_keys",
        action="append",
        metavar="FILE",
        help="key or certificate; may be repeated, as all of these",
    )
    for suffix, dest, metavar, text in (
        ("-sig", "verification_key_sigs", "FILE", "OpenPGP signature of the key file"),
        ("-sig-key", "verification_key_sig_keys", "FILE", "OpenPGP key of that signature"),
        ("-url", "verification_key_urls", "URL", "download the key"),
        ("-sig-url", "verification_key_sig_urls", "URL", "download its OpenPGP signature"),
        ("-sig-url-key", "verification_key_sig_url_keys", "FILE", "OpenPGP key of the downloaded signature"),
    ):
        add(base + suffix, dest=dest, action="append", metavar=metavar, help=text)


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port (1 to 65535)")
    return port
