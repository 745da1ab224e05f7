"""The command line of `keylime_tenant`: flags, the rules between them, and warnings about old ones."""

import argparse
import difflib
import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from keylime.version import add_version
from keylime_tenant.catalogue import COMMANDS, GROUPS
from keylime_tenant.forms import WORDS, Form
from keylime_tenant.moments import FORMS as FORMS_OF_SINCE
from keylime_tenant.moments import parse_since
from keylime_tenant.policy_parts import FORMS, TimedName, lasting_name, parse_parts

DEFAULT_AGENT_ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"

# Commands that upload a runtime policy, and therefore need one.
_UPLOADS = frozenset({"addruntimepolicy", "updateruntimepolicy", "addallowlist"})

# Commands after which an agent is judged anew.
FOLLOWING = ("status", "cvstatus", "why", "history")
_WAITING = frozenset({"add", "approve", "update", "reactivate"})
_WAIT_S = 300.0

STATES = ("failed", "invalid-quote", "stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """One command line, still as the operator wrote it: None means that a flag was not given."""

    command: str = "add"
    names_command: bool = False  # False: nobody typed a command, and the default stands there
    typed: Mapping[str, str] = field(default_factory=dict)  # which name of a flag stands on the command line
    json: bool = False
    output: str | None = None
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
    runtime_policies: tuple[TimedName, ...] = ()  # several, of which that name is one
    policy_version: int | None = None
    policy: str | None = None
    only: tuple[str, ...] = ()
    sign_key: str | None = None
    force: bool = False
    yes: bool = False
    verification_keys: tuple[str, ...] = ()
    verification_key_sigs: tuple[str, ...] = ()
    verification_key_sig_keys: tuple[str, ...] = ()
    verification_key_urls: tuple[str, ...] = ()
    verification_key_sig_urls: tuple[str, ...] = ()
    verification_key_sig_url_keys: tuple[str, ...] = ()
    mb_policy: str | None = None
    mb_policy_name: str | None = None
    no_runtime_policy: bool = False
    no_mb_policy: bool = False
    no_tpm_policy: bool = False
    wait: float | None = None
    exit_code: bool = False
    follow: bool = False
    state: str | None = None
    fingerprint: str | None = None
    since: int | None = None  # epoch seconds
    page_port: int | None = None
    opens_browser: bool = True
    agent_api_version: str | None = None
    supported_version: str | None = None

    def flag(self, field_name: str, usual: str) -> str:
        """The flag that set a field, as it was typed; `usual` when it was not given."""
        return self.typed.get(field_name, usual)

    @property
    def form(self) -> Form | None:
        """The form that was asked for; None when none was."""
        return Form.JSON if self.json else Form(self.output) if self.output is not None else None

    @property
    def policy_name(self) -> str | None:
        """The named runtime policy; `--allowlist-name` is its old spelling."""
        return self.runtime_policy_name or self.allowlist_name

    @property
    def names_runtime_policy(self) -> bool:
        """Whether a runtime policy is given, in whatever way."""
        given = (self.policy_name, self.runtime_policy, self.runtime_policy_url)
        return any(given) or bool(self.allowlist or self.allowlist_url)

    @property
    def names_verification_keys(self) -> bool:
        """Whether keys of IMA file signatures are given."""
        return bool(self.verification_keys or self.verification_key_urls)

    @property
    def names_mb_policy(self) -> bool:
        """Whether a measured boot policy is given."""
        return bool(self.mb_policy or self.mb_policy_name)

    @property
    def api_version(self) -> str | None:
        """The agent's REST version when the operator fixes it; `--supported-version` is the old spelling."""
        return self.agent_api_version or self.supported_version


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """The arguments in `argv`. Ends with 2 and one line when a flag, or a combination, is wrong."""
    parser = build_parser()
    parser.wants_json = _wants_json(argv)
    if _HELP.intersection(argv) and (about := _mentioned(argv)) is not None:
        print(command_help(about), end="")
        parser.exit()
    found, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.error(_unrecognized(parser, unknown))
    values = vars(found)
    word, command = values.pop("word", None), values.pop("command", None)
    if word is not None and word not in COMMANDS:
        parser.error(unknown_command(word, COMMANDS))
    if word is not None and command is not None and word != command:
        parser.error(f"{word} and -c {command} are two commands: give one")
    if word is None and command is None and values.get("verifier_ip") in COMMANDS:
        address = values["verifier_ip"]
        parser.error(f"-v took the command {address} for its address: write keylime_tenant {address} -v")
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    named = word if command is None else command
    chosen: dict[str, Any] = {} if named is None else {"command": named, "names_command": True}
    names = lists.pop("runtime_policy_names", ())
    if len(names) > 1:
        try:
            parts = parse_parts(names, time.time())
        except ValueError as error:
            parser.error(f"--runtime-policy-name: {error} (ends are written NAME@END, END like {FORMS})")
        chosen |= {"runtime_policies": parts, "runtime_policy_name": lasting_name(parts)}
    elif names:
        chosen |= {"runtime_policy_name": names[0]}
    values.pop("runtime_policy_names", None)
    arguments = Arguments(**{**values, **lists, **chosen})
    problem = _encoding_problem(arguments) or combination_problem(arguments)
    if problem is not None:
        parser.error(problem)
    return arguments


# What is sent to services as text. Files may have any name.
_SENT = ("runtime_policy_name", "allowlist_name", "mb_policy_name", "verifier_id", "tpm_policy", "policy")


def _encoding_problem(arguments: Arguments) -> str | None:
    """What was typed in another encoding than the locale's, where that cannot be."""
    for name in _SENT:
        value: str = getattr(arguments, name) or ""
        try:
            value.encode()
        except UnicodeEncodeError:
            flag = arguments.flag(name, f"--{name.replace('_', '-')}")
            return f"{flag}: {value!a} is no text in this locale's encoding: set LANG to one of UTF-8"
    return None


_HELP = frozenset({"-h", "--help"})


def _mentioned(argv: Sequence[str]) -> str | None:
    """The command that help is wanted for."""
    words = (word.removeprefix("--command=").removeprefix("-c") for word in argv)
    return next((word for word in words if word in COMMANDS), None)


def _wants_json(argv: Sequence[str]) -> bool:
    pairs = {*itertools.pairwise(argv)}
    asked = {("-o", "json"), ("--output", "json"), ("-o", "jsonl"), ("--output", "jsonl")}
    return not asked.isdisjoint(pairs) or not {"--json", "--output=json", "-ojson"}.isdisjoint(argv)


def _unrecognized(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    text = f"unrecognized arguments: {' '.join(unknown)}"
    nearest = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
    instead = f"did you mean {nearest[0]}?" if nearest else "`keylime_tenant --help` lists them"
    return f"{text} ({instead})"


def combination_problem(arguments: Arguments) -> str | None:
    """What is wrong between the policy flags, in the words that scripts match; None when nothing is."""
    if arguments.json and arguments.output not in (None, "json"):
        return f"--json and -o {arguments.output} cannot be specified at the same time"
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
    if arguments.fingerprint is not None and arguments.command != "trust-issuer":
        return "--fingerprint is for -c trust-issuer"
    if arguments.since is not None and arguments.command != "audit":
        return "--since is for -c audit"
    approving = arguments.only or arguments.policy or arguments.sign_key or arguments.force or arguments.yes
    if approving and arguments.command != "approve":
        return "--only, --policy, --sign-key, --force and --yes are for approve"
    if (arguments.page_port or not arguments.opens_browser) and arguments.command != "dashboard":
        return "--port and --no-browser are for dashboard"
    if arguments.runtime_policies and arguments.command not in ("add", "update"):
        return "several --runtime-policy-name are for add and update"
    if arguments.runtime_policies and (has_policy or has_allowlist):
        return "several --runtime-policy-name name policies that are stored: give no file beside them"
    return _update_problem(arguments) or _waiting_problem(arguments)


def _update_problem(arguments: Arguments) -> str | None:
    for removed, flag, given in (
        (arguments.no_runtime_policy, "--no-runtime-policy", arguments.names_runtime_policy),
        (arguments.no_mb_policy, "--no-mb-policy", arguments.names_mb_policy),
        (arguments.no_tpm_policy, "--no-tpm-policy", arguments.tpm_policy is not None),
    ):
        if removed and arguments.command != "update":
            return f"{flag} is for -c update"
        if removed and given:
            return f"{flag} cannot be used together with a policy of that kind"
    return None


def _waiting_problem(arguments: Arguments) -> str | None:
    if arguments.wait is not None and arguments.command not in _WAITING:
        return f"--wait is for -c {', '.join(sorted(_WAITING))}"
    if arguments.exit_code and arguments.command != "cvstatus":
        return "--exit-code is for -c cvstatus"
    if arguments.follow and arguments.command not in FOLLOWING:
        return f"--follow is for {', '.join(FOLLOWING)}"
    if arguments.follow and arguments.form in (Form.JSON, Form.NAME):
        return "--follow has no end, and a document does: use -o jsonl, which prints a line for each change"
    if arguments.state is not None and arguments.command != "reactivate":
        return "--state is for -c reactivate"
    if arguments.state is not None and arguments.agent_uuid is not None:
        return "--state means all agents in that state: give it without -u"
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


class _Store(argparse._StoreAction):
    """Stores a value, and by which of its names the flag was typed: messages say that one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        super().__call__(parser, namespace, values, option_string)  # type: ignore[arg-type]
        if option_string is not None:
            namespace.typed = {**getattr(namespace, "typed", {}), self.dest: option_string}


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line, and a document where one was asked for; help is that of one command."""

    wants_json = False
    # For manual pages: group, word, summary.
    commands = tuple(
        (group, word, command.summary)
        for group in GROUPS
        for word, command in COMMANDS.items()
        if command.group == group
    )

    def error(self, message: str) -> NoReturn:
        if self.wants_json:
            print(json.dumps({"error": message}))
        self.exit(2, f"{self.prog}: error: {message}\n")

    def print_help(self, file: Any = None) -> None:
        print(overview(), end="", file=file)


def build_parser() -> "_Parser":
    """All flags of the tenant, with the defaults of Arguments."""
    parser = _Parser(
        prog="keylime_tenant",
        usage="keylime_tenant COMMAND [FLAGS]",
        description="Add agents to a verifier, remove them, and ask verifier and registrar about them.",
        argument_default=argparse.SUPPRESS,
    )
    parser.register("action", None, _Store)
    parser.register("action", "store", _Store)
    word = parser.add_argument("word", nargs="?", metavar="COMMAND", help="what to do, as with -c")
    command = parser.add_argument("-c", "--command", metavar="COMMAND", help="what to do (default: add)")
    # For completion; the parser itself takes any word, because a wrong one ends with another exit status.
    word.completions = command.completions = tuple(COMMANDS)  # type: ignore[attr-defined]
    _add_general(parser)
    for title, sections in _GROUPS:
        group = parser.add_argument_group(title)
        for section in sections:
            _SECTIONS[section](group.add_argument)
    return parser


def _add_general(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        choices=WORDS,
        help="form of what is printed: for people (table, wide), programs (json, jsonl) or names only "
        "(default: table on a terminal, otherwise the lines that scripts search)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON document on stdout, everything else on stderr"
    )
    add_version(parser)


def overview() -> str:
    """What `--help` prints: the commands in their groups, one line each."""
    lines = [
        "usage: keylime_tenant COMMAND [FLAGS]        (or: keylime_tenant -c COMMAND [FLAGS])",
        "       keylime_tenant COMMAND --help",
        *_command_lines(),
        "",
        "flags of every command:",
    ]
    shown = argparse.ArgumentParser(prog="keylime_tenant", add_help=False, usage=argparse.SUPPRESS)
    _add_general(shown)
    lines += [line for line in shown.format_help().splitlines() if line.startswith(" ")]
    return "\n".join(lines) + "\n"


def _command_lines() -> Iterator[str]:
    width = max(map(len, COMMANDS))
    for group in GROUPS:
        yield ""
        yield f"{group}:"
        for word, command in COMMANDS.items():
            if command.group == group:
                yield f"  {word:{width}}  {command.summary}"


def command_help(word: str) -> str:
    """What `COMMAND --help` prints: the flags that mean something to this command."""
    command = COMMANDS[word]
    parser = argparse.ArgumentParser(
        prog=f"keylime_tenant {word}",
        usage=f"keylime_tenant {word} [FLAGS]",
        description=command.summary[:1].upper() + command.summary[1:] + ".",
        add_help=False,
    )
    for title, sections in _GROUPS:
        group = parser.add_argument_group(title)
        for section in sections:
            if section in command.flags:
                _SECTIONS[section](group.add_argument)
    _add_general(parser)
    return parser.format_help()


_Add: TypeAlias = Callable[..., argparse.Action]


def _agent(add: _Add) -> None:
    add("-u", "--uuid", dest="agent_uuid", metavar="ID", help=f"agent id (default: {DEFAULT_AGENT_ID})")


def _contact(add: _Add) -> None:
    add("-t", "--targethost", dest="agent_ip", metavar="ADDRESS", help="agent (default: as registered)")
    add("-tp", "--targetport", dest="agent_port", type=_port, metavar="PORT", help="port of the agent")
    add("--cv_targethost", metavar="ADDRESS", help="agent as the verifier reaches it (default: as -t)")
    add("--agent-api-version", metavar="X.Y", help="REST version of the agent (default: negotiated)")
    add("--supported-version", metavar="X.Y", help="deprecated spelling of --agent-api-version")
    add(
        "--push-model",
        action="store_true",
        help="the agent attests by itself (keylime_push_model_agent): nothing is asked of it",
    )


def _registrar(add: _Add) -> None:
    add("-r", "--registrarhost", dest="registrar_ip", metavar="ADDRESS", help="registrar")
    add(
        "-rp",
        "--registrarport",
        dest="registrar_port",
        type=_port,
        metavar="PORT",
        help="port of the registrar",
    )


def _verifier(add: _Add) -> None:
    # `-v` at the end of a line, its address lost in a copied command, means the configured verifier.
    add("-v", "--cv", dest="verifier_ip", nargs="?", metavar="ADDRESS", help="verifier")
    add("-vp", "--cvport", dest="verifier_port", type=_port, metavar="PORT", help="port of the verifier")


def _verifier_id(add: _Add) -> None:
    add("-vi", "--cvid", dest="verifier_id", metavar="ID", help="only agents of the verifier with this id")


def _owner(add: _Add) -> None:
    add(
        "-nvc",
        "--no-verifier-check",
        dest="verifier_check",
        action="store_false",
        help="do not ask the verifier who owns the agent before deleting or reactivating it",
    )


def _state(add: _Add) -> None:
    add("--state", choices=STATES, help="reactivate: all agents in this state, instead of the one of -u")


def _wait(add: _Add) -> None:
    add(
        "--wait",
        nargs="?",
        const=_WAIT_S,
        type=_seconds,
        metavar="SECONDS",
        help="return when the first round is judged: exit status 0 passed, 1 failed, 3 neither within "
        f"SECONDS (default: {_WAIT_S:g})",
    )


def _exit_code(add: _Add) -> None:
    add(
        "--exit-code",
        action="store_true",
        help="cvstatus: exit status 0 passed, 1 failed, 3 not judged yet",
    )


def _follow(add: _Add) -> None:
    add(
        "--follow",
        action="store_true",
        help="go on showing what changes, as it happens, until the agent is deleted or Ctrl-C",
    )


def _since_when(add: _Add) -> None:
    add("--since", type=_since, metavar="WHEN", help=f"audit: only from then on ({FORMS_OF_SINCE})")


def _fingerprint(add: _Add) -> None:
    add(
        "--fingerprint",
        metavar="SHA256",
        help="trust-issuer: the fingerprint that the TPM's maker publishes of its CA certificate; stores the "
        "issuers up to that one without asking",
    )


def _page(add: _Add) -> None:
    add(
        "--port",
        dest="page_port",
        type=_port,
        metavar="PORT",
        help="dashboard: the port on 127.0.0.1 (default: any, on a loopback address of its own)",
    )
    add(
        "--no-browser",
        dest="opens_browser",
        action="store_false",
        help="dashboard: print the address, and open it nowhere",
    )


def _authority(add: _Add) -> None:
    add(
        "--cert",
        dest="ca_dir",
        metavar="DIR",
        help="the CA in DIR or 'default': add and update deliver a certificate package of it, delete revokes "
        "there",
    )


def _payload(add: _Add) -> None:
    add("-f", "--file", metavar="FILE", help="encrypt and deliver this file")
    add(
        "--include", dest="include_dir", metavar="DIR", help="add the files of DIR to the certificate package"
    )
    add("-k", "--key", dest="keyfile", metavar="FILE", help="keys made before: three base64 lines")
    add("-p", "--payload", metavar="FILE", help="payload encrypted before with the keys of -k")
    add("--verify", action="store_true", help="wait until the agent proves that it holds the payload's key")


def _runtime_name(add: _Add) -> None:
    add(
        "--runtime-policy-name",
        dest="runtime_policy_names",
        action="append",
        metavar="NAME",
        help="named runtime policy of the verifier; for add and update several, each NAME or NAME@END, which "
        f"hold together until END ({FORMS})",
    )
    add("--allowlist-name", metavar="NAME", help="deprecated spelling of --runtime-policy-name")


def _runtime_policy(add: _Add) -> None:
    add("--runtime-policy", "--runtime_policy", metavar="FILE", help="runtime policy, plain or signed (DSSE)")
    add("--runtime-policy-url", metavar="URL", help="download the runtime policy")
    add("--runtime-policy-checksum", metavar="HEX", help="SHA-256 of the runtime policy")


def _policy_version(add: _Add) -> None:
    add("--policy-version", type=_number, metavar="NUMBER", help="restorepolicy: the version to go back to")


def _signature_key(add: _Add) -> None:
    add(
        "--runtime-policy-sig-key", metavar="FILE", help="public key that must have signed the runtime policy"
    )


def _approval(add: _Add) -> None:
    add(
        "--only",
        action="append",
        metavar="PATH",
        help="approve: only what was found at PATH; may be repeated",
    )
    add("--policy", metavar="NAME", help="approve: the policy to add to, where an agent has several")
    add(
        "--sign-key",
        metavar="KEY",
        help="approve: private key for the next version of a signed policy: a PEM file, also a TPM's, "
        "or a pkcs11: URI",
    )
    add("--force", action="store_true", help="approve: also files that their own signature contradicts")
    add("--yes", action="store_true", help="approve: do not ask")


def _boot_name(add: _Add) -> None:
    add("--mb-policy-name", metavar="NAME", help="named measured boot policy of the verifier")


def _boot_policy(add: _Add) -> None:
    add("--mb-policy", "--mb_refstate", metavar="FILE", help="measured boot reference state, or 'default'")


def _tpm_policy(add: _Add) -> None:
    add("--tpm_policy", metavar="JSON", help="PCR numbers to accepted hex values")


def _removal(add: _Add) -> None:
    for kind, text in (("runtime", "runtime"), ("mb", "measured boot"), ("tpm", "TPM")):
        add(f"--no-{kind}-policy", action="store_true", help=f"update: take the {text} policy away")


def _old_policy(add: _Add) -> None:
    add("--allowlist", metavar="FILE", help="deprecated: allowlist, converted to a runtime policy")
    add("--allowlist-url", metavar="URL", help="deprecated: download the allowlist")
    add("--exclude", metavar="FILE", help="deprecated: one regular expression in each line, with --allowlist")


def _keys(add: _Add) -> None:
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


_SECTIONS: Mapping[str, Callable[[_Add], None]] = {
    "agent": _agent,
    "contact": _contact,
    "registrar": _registrar,
    "verifier": _verifier,
    "verifier id": _verifier_id,
    "owner": _owner,
    "state": _state,
    "wait": _wait,
    "exit code": _exit_code,
    "follow": _follow,
    "fingerprint": _fingerprint,
    "since": _since_when,
    "page": _page,
    "authority": _authority,
    "payload": _payload,
    "runtime policy name": _runtime_name,
    "runtime policy": _runtime_policy,
    "signature key": _signature_key,
    "policy version": _policy_version,
    "approval": _approval,
    "boot policy name": _boot_name,
    "boot policy": _boot_policy,
    "tpm policy": _tpm_policy,
    "removal": _removal,
    "old policy": _old_policy,
    "keys": _keys,
}

_GROUPS: Sequence[tuple[str, Sequence[str]]] = (
    (
        "who is meant, and how",
        (
            "agent",
            "contact",
            "registrar",
            "verifier",
            "verifier id",
            "owner",
            "state",
            "wait",
            "exit code",
            "follow",
            "fingerprint",
            "since",
            "page",
        ),
    ),
    ("payload, delivered after the first good attestation", ("authority", "payload")),
    (
        "policies",
        (
            "runtime policy name",
            "runtime policy",
            "signature key",
            "policy version",
            "approval",
            "boot policy name",
            "boot policy",
            "tpm policy",
            "removal",
            "old policy",
        ),
    ),
    ("keys of IMA file signatures (deprecated, put them in the policy)", ("keys",)),
)


def _port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() and len(text) <= len("65535") else 0
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return port


def _since(text: str) -> int:
    try:
        return parse_since(text, time.time())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds")
    return seconds
