"""`keylime_ca`: makes a certificate authority, its certificates and packages, and revokes them."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from keylime import keylime_logging
from keylime.command_line import OneLineParser
from keylime.config.loader import load_settings
from keylime.config.settings import work_dir
from keylime.errors import ConfigError, KeylimeError
from keylime.file_errors import file_errors_explained
from keylime.interruption import end_interrupted
from keylime.pki.authority import Authority
from keylime.pki.ca_settings import CaSettings
from keylime.pki.issuance import Usage
from keylime.pki.library_warnings import ignore_library_warnings
from keylime.pki.roles import REVOCATION_NOTIFIER
from keylime.revocation.publication import endpoint
from keylime.service.core_dumps import forbid_core_dumps
from keylime.version import add_version
from keylime_tenant.ca import life, vendor_import
from keylime_tenant.ca.authorities import authority_directory, load_ca_settings
from keylime_tenant.ca.crl_server import CRL_PORT
from keylime_tenant.ca.listen import ListenOptions, listen
from keylime_tenant.passwords import keystore_password, new_keystore_password

_ROLES = {"node": Usage.NODE, "administrator": Usage.CLIENT, "server": Usage.SERVER}
_FAILED = 255  # what scripts of existing deployments expect for wrong usage beyond the flags themselves


@dataclass(frozen=True, slots=True)
class CaArguments:
    """One command line of `keylime_ca`."""

    command: str
    name: str | None = None
    role: str | None = None
    directory: str | None = None
    insecure: bool = False
    file: str | None = None
    serial: int | None = None
    zmq_ip: str | None = None
    zmq_port: int | None = None
    step: str | None = None
    force: bool = False
    crl_ip: str = "127.0.0.1"
    crl_port: int = CRL_PORT


class Misuse(ConfigError):
    """A command without what it needs; answered with the help text."""


def main() -> None:
    """The console script: 0 for success, 1 for a failure, 2 for wrong flags, 255 for missing ones."""
    ignore_library_warnings()
    if sys.argv[1:2] == [vendor_import.COMMAND]:
        _import_vendor(sys.argv[2:])
        return
    parser = build_parser()
    arguments = CaArguments(**vars(parser.parse_args()))
    os.umask(0o077)
    forbid_core_dumps()
    try:
        with file_errors_explained():
            run(arguments, os.environ, print)
    except Misuse as error:
        print(f"keylime_ca: error: {error}", file=sys.stderr)
        sys.exit(_FAILED)
    except KeylimeError as error:
        print(f"keylime_ca: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        end_interrupted("keylime_ca")


def _import_vendor(arguments: Sequence[str]) -> None:
    os.umask(0o022)  # nothing is secret here
    try:
        with file_errors_explained():
            vendor_import.import_vendor(arguments, os.environ, print)
    except KeylimeError as error:
        print(f"keylime_ca: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        end_interrupted("keylime_ca")


def build_parser() -> argparse.ArgumentParser:
    """The flags of `keylime_ca`."""
    parser = OneLineParser(
        prog="keylime_ca",
        description="Manage the certificate authority whose certificates payloads deliver to machines.",
        epilog=f"`keylime_ca {vendor_import.COMMAND} FILE` adds certificates of TPM makers to the store of "
        "those that are trusted.",
        argument_default=argparse.SUPPRESS,
    )
    add_version(parser)
    add = parser.add_argument
    add("-c", "--command", required=True, metavar="COMMAND", help=", ".join(_COMMANDS))
    add("-n", "--name", help="name in the certificate: an agent id, an administrator's, a host's")
    add(
        "--role",
        choices=tuple(_ROLES),
        help="whom create makes a certificate for: node (a machine, never an administrator), administrator, "
        "server; by default client is an administrator, server a server, and any other name a node",
    )
    add(
        "-d",
        "--dir",
        dest="directory",
        metavar="DIR",
        help="directory of the authority (default: ca in the working directory)",
    )
    add(
        "-i",
        "--insecure",
        action="store_true",
        help="put the private key into the package without a password",
    )
    add("-f", "--file", help="unencrypted CA key in PEM, for import-priv")
    add("-s", "--serial", type=int, help="last serial number that the imported CA has used")
    add = parser.add_argument_group(
        "roll: give the CA another key, in three steps",
        "Without a flag the next CA is made and trusted beside the one that issues.",
    ).add_argument
    add("--switch", dest="step", action="store_const", const="switch", help="let the next CA issue")
    add("--drop", dest="step", action="store_const", const="drop", help="trust the former CA no more")
    add("--force", action="store_true", help="drop it though certificates of it are in the directory")
    add = parser.add_argument_group(
        "listen: revoke what the verifier rejects, and serve the revocation list",
        f"-n names the certificate that verifies messages, of this CA or a file (default: "
        f"{REVOCATION_NOTIFIER}).",
    ).add_argument
    add("--zmq-ip", metavar="ADDRESS", help="ZeroMQ publisher (default: zmq_ip of verifier.conf)")
    add("--zmq-port", type=int, metavar="PORT", help="port of it (default: zmq_port of verifier.conf)")
    add("--crl-ip", metavar="ADDRESS", help="address to serve /crl on (default: 127.0.0.1)")
    add("--crl-port", type=int, metavar="PORT", help=f"port to serve /crl on (default: {CRL_PORT})")
    return parser


def run(arguments: CaArguments, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Carries out `arguments`. Raises Misuse, ConfigError, CredentialError."""
    command = _COMMANDS.get(arguments.command)
    if command is None:
        raise Misuse(f"Invalid command: {arguments.command}; known are {', '.join(_COMMANDS)}")
    if command.needs_name and not arguments.name:
        raise Misuse(f"you must pass in a name using -n (or --name) to {arguments.command}")
    if arguments.directory is None:
        _demand_access(work_dir(environ))
    directory = authority_directory(arguments.directory, environ)
    command.run(_Task(arguments, directory, load_ca_settings(environ), say, environ))


@dataclass(frozen=True, slots=True)
class _Task:
    arguments: CaArguments
    directory: Path
    settings: CaSettings
    say: Callable[[str], None]
    environ: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name, which `run` has demanded."""
        return self.arguments.name or ""

    def open(self) -> Authority:
        """The existing authority. Raises ConfigError, CredentialError."""
        password = keystore_password(self.settings)
        return Authority.open(self.directory, password, self.settings.subject)


def _init(task: _Task) -> None:
    password = new_keystore_password(task.settings)
    Authority.create(task.directory, password, task.settings.subject)
    task.say(f"CA certificate created successfully in {task.directory}")


def _create(task: _Task) -> None:
    role = task.arguments.role
    task.open().issue(task.name, usage=None if role is None else _ROLES[role])
    task.say(f"Created certificate for name {task.name} successfully in {task.directory}")


def _package(task: _Task) -> None:
    authority = task.open()
    task.say(f"Creating cert package for {task.name} in {task.name}-pkg.zip")
    authority.write_package(task.name)


def _revoke(task: _Task) -> None:
    serial = task.open().revoke(task.name)
    task.say(f"Revoked certificate {serial} of {task.name}; cacrl.der and cacrl.pem are new")


def _list(task: _Task) -> None:
    life.list_certificates(task.directory, task.settings.subject.lifetime_days, task.say)


def _renew(task: _Task) -> None:
    password = keystore_password(task.settings)
    life.renew(task.directory, task.settings, password, task.arguments.name, task.say)


def _roll(task: _Task) -> None:
    arguments, password = task.arguments, keystore_password(task.settings)
    life.roll(task.directory, task.settings, password, arguments.step, task.say, force=arguments.force)


def _import_key(task: _Task) -> None:
    if task.arguments.file is None or task.arguments.serial is None:
        raise Misuse(
            "import-priv needs the key with -f (or --file) and the last serial with -s (or --serial)"
        )
    try:
        key = Path(task.arguments.file).read_bytes()
    except OSError as error:
        raise ConfigError(f"-f: {error.strerror}: {task.arguments.file}") from error
    password = new_keystore_password(task.settings)
    subject = task.settings.subject
    Authority.import_key(task.directory, password, key, task.arguments.serial, subject)
    task.say(f"Imported the CA key into {task.directory}")


def _listen(task: _Task) -> None:
    options = _listen_options(task)
    authority = task.open()
    keylime_logging.setup("ca", task.environ)
    asyncio.run(listen(authority, task.directory, options))


def _listen_options(task: _Task) -> ListenOptions:
    arguments = task.arguments
    verifier = load_settings("verifier", environ=task.environ)
    address = arguments.zmq_ip or verifier.text("zmq_ip", section="revocations")
    # A publisher that listens on all addresses of this host is reached over loopback.
    address = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104
    name = task.name or REVOCATION_NOTIFIER
    in_directory = task.directory / f"{name}-cert.crt"
    is_path = os.sep in name or name.endswith((".crt", ".pem"))
    return ListenOptions(
        endpoint(address, arguments.zmq_port or verifier.integer("zmq_port", section="revocations")),
        Path(name) if is_path else in_directory,
        arguments.crl_ip,
        arguments.crl_port,
    )


@dataclass(frozen=True, slots=True)
class _CaCommand:
    run: Callable[[_Task], None]
    needs_name: bool = False


_COMMANDS: Mapping[str, _CaCommand] = {
    "init": _CaCommand(_init),
    "create": _CaCommand(_create, needs_name=True),
    "pkg": _CaCommand(_package, needs_name=True),
    "revoke": _CaCommand(_revoke, needs_name=True),
    "list": _CaCommand(_list),
    "renew": _CaCommand(_renew),
    "roll": _CaCommand(_roll),
    "import-priv": _CaCommand(_import_key),
    "listen": _CaCommand(_listen),
}


def _demand_access(directory: Path) -> None:
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise Misuse(f"{directory} cannot be written: run as another user, or name a directory with -d")


if __name__ == "__main__":
    main()
