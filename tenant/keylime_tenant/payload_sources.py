"""Where a payload comes from: a file, a ready-made ciphertext with its keys, or a certificate package."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from keylime.errors import ConfigError
from keylime.identifiers import AgentId
from keylime.pki.authority import Authority
from keylime.pki.roles import REVOCATION_NOTIFIER
from keylime_tenant.arguments import Arguments
from keylime_tenant.payload import NOTHING, PayloadDelivery, check_rules, encrypted, premade


def prepare_delivery(
    arguments: Arguments,
    agent_id: AgentId,
    *,
    max_size: int,
    open_authority: Callable[[], Authority],
    take_back: Callable[[], None],
) -> PayloadDelivery:
    """The delivery that the flags ask for; `--cert` makes missing certificates. Raises ConfigError.

    `take_back` revokes the certificate that there was, once all that is to be delivered has been read.
    """
    check_rules(arguments)
    if arguments.file:
        delivery = encrypted(read_file("-f", arguments.file))
    elif arguments.keyfile:
        ciphertext = read_file("-p", arguments.payload) if arguments.payload else None
        delivery = premade(read_file("-k", arguments.keyfile), ciphertext)
    elif arguments.ca_dir:
        included = included_files(arguments.include_dir)
        take_back()
        delivery = certificate_package(open_authority(), agent_id, included)
    else:
        delivery = NOTHING
    size = len(delivery.ciphertext or "")
    if size > max_size:
        raise ConfigError(
            f"the encrypted payload has {size} bytes, [tenant] max_payload_size allows {max_size}"
        )
    return delivery


def certificate_package(
    authority: Authority, agent_id: AgentId, included: Mapping[str, bytes]
) -> PayloadDelivery:
    """The agent's certificates and `included` as an encrypted zip, and what the verifier must know.

    Raises ConfigError.
    """
    issued = authority.ensure_node(agent_id)
    notifier = authority.ensure(REVOCATION_NOTIFIER)
    content = authority.package(agent_id, included)
    metadata = {"cert_serial": issued.serial, "subject": issued.subject}
    return encrypted(content, metadata=json.dumps(metadata), revocation_key=notifier.private_key_pem)


def included_files(directory: str | None) -> dict[str, bytes]:
    """The plain files of `directory` by name, without those of its directories. Raises ConfigError."""
    if directory is None:
        return {}
    try:
        files = sorted(path for path in Path(directory).iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(f"--include: {error.strerror}: {directory}") from error
    return {path.name: read_file("--include", str(path)) for path in files}


def read_file(flag: str, path: str) -> bytes:
    """The content of the file that `flag` names. Raises ConfigError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag}: {error.strerror}: {path}") from error
