"""The program keylime-setup: a machine of verifier and registrar, or one that is to be watched."""

import argparse
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from keylime.checkup import Grade, Result, summary
from keylime.command_line import OneLineParser
from keylime.errors import ConfigError, CredentialError, KeylimeError
from keylime.interruption import end_interrupted
from keylime.pki.certificates import parse_certificate
from keylime.pki.server_names import ServerNames
from keylime.setup.authority import fingerprint, is_authority, same_fingerprint
from keylime.setup.host import Host
from keylime.setup.network import NoWayError, demand_answer, own_address_towards, presented_authority
from keylime.setup.plan import Control, Node, agent_id_for, node_command
from keylime.version import add_version

_PROGRAM = "keylime-setup"
# Reserved for documentation (RFC 5737): the way there is the way to anywhere.
_ANYWHERE = "198.51.100.1"


def main() -> None:
    """Exit status: 0 when everything is set up and answers, 1 when not, 2 for wrong usage."""
    arguments = _parse_arguments(sys.argv[1:])
    try:
        if os.geteuid() != 0:
            raise ConfigError("it writes configuration and starts services: run it as root")
        if arguments.role == "control":
            set_up_control(arguments, Host())
        else:
            set_up_node(arguments, Host())
    except KeylimeError as error:
        sys.stdout.flush()
        sys.exit(f"{_PROGRAM}: error: {error}")
    except EOFError:
        sys.exit(f"{_PROGRAM}: stopped")
    except KeyboardInterrupt:
        end_interrupted(_PROGRAM)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog=_PROGRAM,
        description="Sets up a machine with one command: writes setup.conf into /etc/keylime/*.conf.d, "
        "checks it, enables the services, tries whether they answer, and examines the machine. Running it "
        "again does no harm.",
    )
    add_version(parser)
    roles = parser.add_subparsers(dest="role", required=True, metavar="control|node")
    control = roles.add_parser(
        "control",
        help="verifier and registrar",
        description="Sets up verifier and registrar, and prints what to run on the machines to be watched.",
    )
    control.add_argument(
        "--address",
        action="append",
        metavar="NAME",
        help="address or host name under which others reach this machine; may be repeated (default: the "
        "address on the way to the default gateway)",
    )
    node = roles.add_parser(
        "node",
        help="a machine that is to be watched",
        description="Sets up the agent: fetches the certificate of the verifier's authority, and asks "
        "whether its fingerprint is the one that `keylime-setup control` printed there.",
    )
    node.add_argument(
        "--control", metavar="ADDRESS", help="machine of verifier and registrar; asked for when missing"
    )
    node.add_argument(
        "--registrar", metavar="ADDRESS", help="the registrar, if it is elsewhere than the verifier"
    )
    node.add_argument(
        "--address",
        metavar="ADDRESS",
        help="address under which verifier and tenant reach this machine (default: the one they see)",
    )
    node.add_argument(
        "--uuid", metavar="ID", help="id of this machine (default: what is configured, else a new one)"
    )
    known = node.add_mutually_exclusive_group()
    known.add_argument(
        "--fingerprint", metavar="SHA256", help="fingerprint of the authority; nothing is asked then"
    )
    known.add_argument(
        "--ca", type=Path, metavar="FILE", help="certificate of the authority, copied from there"
    )
    for one in (control, node):
        one.add_argument("--listen", metavar="ADDRESS", help="address to listen on (default: all)")
        one.add_argument("--no-start", action="store_true", help="write and check, and leave services alone")
    return parser.parse_args(argv)


def set_up_control(arguments: argparse.Namespace, host: Host) -> None:
    """Verifier and registrar on this machine. Raises ConfigError."""
    names = tuple(arguments.address or (_own_address(_ANYWHERE),))
    for component, options in Control(names, arguments.listen).options().items():
        print(f"Wrote {host.write(component, options)}")
        host.check(f"keylime_{component}")
    if arguments.no_start:
        print("Start keylime_verifier, then keylime_registrar: the first start makes the authority")
        return
    host.start("keylime_verifier", "keylime_registrar")
    print("Started keylime_verifier and keylime_registrar")
    for component, option in (("verifier", "port"), ("registrar", "port"), ("registrar", "tls_port")):
        port = host.settings(component).integer(option)
        demand_answer(
            names[0], port, f"is {names[0]} an address of this machine, and [{component}] ip right?"
        )
    verifier_port = host.settings("verifier").integer("port")
    try:
        leaf, authority = presented_authority(names[0], verifier_port)
    except ConfigError as error:  # of servers with certificates from elsewhere
        _examine_control(host)
        print(f"On each machine that is to be watched:\n  keylime-setup node --control {names[0]} --ca FILE")
        print(f"warning: {error}")
        return
    _warn_of_names(leaf, names, host)
    _examine_control(host)
    print(f"Fingerprint (SHA-256) of the authority:\n  {fingerprint(authority)}")
    print(f"On each machine that is to be watched:\n  {node_command(names[0], fingerprint(authority))}")


def set_up_node(arguments: argparse.Namespace, host: Host) -> None:
    """The agent of this machine. Raises ConfigError."""
    verifier = arguments.control or _ask("Address of the machine with the verifier: ", "--control")
    registrar = arguments.registrar or verifier
    contact = arguments.address or _own_address(verifier)
    settings = host.settings("agent")
    node = Node(
        verifier=verifier,
        registrar=registrar,
        contact=contact,
        agent_id=agent_id_for(settings.text("uuid"), arguments.uuid, uuid.uuid4()),
        listen=arguments.listen,
    )
    plan = node.options()["agent"]
    demand_answer(
        registrar,
        settings.integer("registrar_port"),
        "is the registrar started there, does it listen there, and does the firewall let us through?",
    )
    host.trust(_authority(arguments, verifier, host))
    print(f"Trusting {host.authority_file}\nWrote {host.write('agent', plan)}")
    host.check("keylime_agent")
    if arguments.no_start:
        print("Start keylime_agent")
    else:
        host.start("keylime_agent")
        demand_answer(
            contact, settings.integer("port"), f"is {contact} an address of this machine?", patience_s=30
        )
        print(f"Started keylime_agent, which others reach at {contact}")
        _show("keylime_agent --check", host.examine("keylime_agent", "--check", service="keylime_agent"))
    print(f"Where the tenant is:\n  keylime_tenant -u {node.agent_id} -c add")


def _authority(arguments: argparse.Namespace, verifier: str, host: Host) -> x509.Certificate:
    if arguments.ca is not None:
        return _copied(arguments.ca)
    # Not our configuration's: this machine need not have a verifier.
    port = 8881
    _, authority = presented_authority(verifier, port)
    shown = fingerprint(authority)
    if arguments.fingerprint is not None and not same_fingerprint(arguments.fingerprint, shown):
        raise ConfigError(
            f"--fingerprint is not that of the authority at {verifier}:{port}, which is {shown}: compare "
            "with what `keylime-setup control` prints there; if they differ, somebody is in between"
        )
    if arguments.fingerprint is not None or host.trusted() == authority:
        return authority
    print(f"Fingerprint (SHA-256) of the authority at {verifier}:{port}:\n  {shown}")
    answer = _ask("Is it what `keylime-setup control` printed there? (yes/no) ", "--fingerprint or --ca")
    if answer.lower() != "yes" and not same_fingerprint(answer, shown):
        raise ConfigError("the authority was not confirmed, nothing is changed")
    return authority


def _copied(path: Path) -> x509.Certificate:
    try:
        certificate = parse_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--ca {path}: {error.strerror}") from error
    except CredentialError as error:
        raise ConfigError(f"--ca {path}: {error}") from error
    if not is_authority(certificate):
        raise ConfigError(f"--ca {path} is no self-signed certificate of an authority; take cv_ca/cacert.crt")
    return certificate


def _own_address(towards: str) -> str:
    try:
        return own_address_towards(towards)
    except NoWayError as error:
        raise ConfigError(f"{error}; name the address of this machine with --address") from error


def _warn_of_names(leaf: x509.Certificate, names: Sequence[str], host: Host) -> None:
    served = ServerNames.of(leaf)
    missing = [name for name in names if not served.cover(name)]
    if missing:
        file = host.authority_file.with_name("server-cert.crt")
        print(
            f"warning: the servers' certificate is not for {', '.join(missing)}: it is older than this "
            f"set-up. If it was made by the verifier, remove {file} and restart both services"
        )


def _examine_control(host: Host) -> None:
    """What the tenant finds, where it is on this machine as well."""
    if host.has("keylime_tenant"):
        _show("keylime_tenant doctor", host.examine("keylime_tenant", "doctor"))


def _show(command: str, results: Sequence[Result]) -> None:
    """Of an examination, what is to be looked at. It decides nothing: everything was written, and answers."""
    print(f"{command}: {summary(results)}")
    for result in results:
        if result.grade is not Grade.OK:
            print(f"  {result}")


def _ask(question: str, flag: str) -> str:
    if not sys.stdin.isatty():
        raise ConfigError(f"there is no terminal to ask on: give {flag}")
    return input(question).strip()


if __name__ == "__main__":
    main()
