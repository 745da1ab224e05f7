"""Flags that push agents of other releases have: each gives an option, or is said to have no effect."""

import argparse
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from keylime.errors import ConfigError

_OPTIONS = {
    "agent_identifier": "UUID",
    "ca_certificate": "VERIFIER_TLS_CA_CERT",
    "verifier_url": "VERIFIER_URL",
    "attestation_interval_seconds": "ATTESTATION_INTERVAL_SECONDS",
}
_WITHOUT_EFFECT = (
    "--api-version",
    "--json-file",
    "--attestation-index",
    "--session-index",
    "--message-type",
    "--method",
    "--timeout",
    "--insecure",
    "--avoid-tpm",
)
_SWITCHES = frozenset({"--insecure", "--avoid-tpm"})
_PORTS = {"http": 8890, "https": 8891}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds them to the program's own."""
    group = parser.add_argument_group("instead of options of agent.conf")
    group.add_argument("--agent-identifier", metavar="ID", help="uuid")
    group.add_argument("--ca-certificate", metavar="FILE", help="verifier_tls_ca_cert")
    group.add_argument("-v", "--verifier-url", metavar="URL", help="verifier_url")
    group.add_argument(
        "--registrar-url",
        metavar="URL",
        help="registrar_ip with registrar_port, or after https:// with registrar_tls_port",
    )
    group.add_argument("--attestation-interval-seconds", metavar="N", help="attestation_interval_seconds")
    for flag in _WITHOUT_EFFECT:
        names = ("-j", flag) if flag == "--json-file" else (flag,)
        action = "store_true" if flag in _SWITCHES else "store"
        parser.add_argument(*names, action=action, help=argparse.SUPPRESS)


def environment_of(arguments: argparse.Namespace) -> Mapping[str, str]:
    """What the flags say, as variables of the environment. Raises ConfigError."""
    said = {name: getattr(arguments, flag) for flag, name in _OPTIONS.items()}
    if arguments.registrar_url is not None:
        said |= _registrar(arguments.registrar_url)
    return {f"KEYLIME_AGENT_{name}": value for name, value in said.items() if value is not None}


def _registrar(url: str) -> dict[str, str]:
    expected = f"--registrar-url {url}: expected http://HOST:PORT or https://HOST:PORT"
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError) as error:
        raise ConfigError(expected) from error
    if not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(expected)
    is_secure = parts.scheme == "https"
    where = "REGISTRAR_TLS_PORT" if is_secure else "REGISTRAR_PORT"
    return {
        "REGISTRAR_IP": parts.hostname,
        where: str(port),
        "REGISTRAR_TLS_ENABLED": str(is_secure),
    }


def remarks_on(arguments: argparse.Namespace) -> Iterator[str]:
    """One line about all flags that are given and have no effect, if there are any."""
    given = [
        flag for flag in _WITHOUT_EFFECT if getattr(arguments, flag.removeprefix("--").replace("-", "_"))
    ]
    if given:
        yield f"no effect here: {', '.join(given)}"
