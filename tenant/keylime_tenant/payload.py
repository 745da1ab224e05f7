"""What an agent gets once it is trusted: a file, a ready-made ciphertext, or a certificate package."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from keylime.errors import ConfigError, CredentialError
from keylime.identifiers import AgentId
from keylime.payload.bundle import decrypt_payload, encrypt_payload
from keylime.payload.keys import BootstrapKey, parse_key_file, split_key
from keylime.pki.authority import Authority
from keylime.pki.issuance import REVOCATION_NOTIFIER
from keylime_tenant.arguments import Arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A payload ready to go: key shares, ciphertext, and what the verifier learns about it."""

    key: BootstrapKey | None = field(default=None, repr=False)  # None: the agent gets nothing
    ciphertext: str | None = field(default=None, repr=False)  # base64
    metadata: str = "{}"  # JSON text
    revocation_key: str = field(default="", repr=False)  # PEM

    @property
    def v_share(self) -> str | None:
        """V in base64, as the verifier keeps it."""
        return None if self.key is None else base64.b64encode(self.key.v).decode("ascii")


NOTHING = Delivery()


def check_rules(arguments: Arguments) -> None:
    """Raises ConfigError when the payload flags do not go together."""
    sources = [
        flag
        for flag, value in (("-f", arguments.file), ("-k", arguments.keyfile), ("--cert", arguments.ca_dir))
        if value
    ]
    if len(sources) > 1:
        raise ConfigError(f"{' and '.join(sources)} exclude each other: give one of -f, -k, --cert")
    if arguments.verify and not sources:
        raise ConfigError("--verify needs a payload: give one of -f, -k, --cert")
    if arguments.payload and not arguments.keyfile:
        raise ConfigError("-p needs the keys that its file was encrypted with: give -k")
    if arguments.include_dir and not arguments.ca_dir:
        raise ConfigError("--include adds to a certificate package: give --cert")


def prepare_delivery(
    arguments: Arguments,
    agent_id: AgentId,
    *,
    max_size: int,
    open_authority: Callable[[], Authority],
) -> Delivery:
    """The delivery that the flags ask for; `--cert` makes missing certificates. Raises ConfigError."""
    check_rules(arguments)
    if arguments.file:
        delivery = encrypted(read_file("-f", arguments.file))
    elif arguments.keyfile:
        ciphertext = read_file("-p", arguments.payload) if arguments.payload else None
        delivery = premade(read_file("-k", arguments.keyfile), ciphertext)
    elif arguments.ca_dir:
        delivery = certificate_package(open_authority(), agent_id, included_files(arguments.include_dir))
    else:
        delivery = NOTHING
    size = len(delivery.ciphertext or "")
    if size > max_size:
        raise ConfigError(
            f"the encrypted payload has {size} bytes, [tenant] max_payload_size allows {max_size}"
        )
    return delivery


def encrypted(content: bytes, *, metadata: str = "{}", revocation_key: str = "") -> Delivery:
    """`content` under a fresh key."""
    key = split_key()
    return Delivery(
        key=key, ciphertext=encrypt_payload(key.k, content), metadata=metadata, revocation_key=revocation_key
    )


def premade(key_lines: bytes, ciphertext: bytes | None) -> Delivery:
    """A payload that was encrypted before: the text of its key file and its base64. Raises ConfigError."""
    try:
        key = parse_key_file(key_lines.decode("ascii"))
    except (CredentialError, UnicodeDecodeError) as error:
        raise ConfigError(f"-k: {error}") from error
    if ciphertext is None:
        return Delivery(key=key)
    try:
        text = b"".join(ciphertext.split()).decode("ascii")
        decrypt_payload(key.k, text)
    except (CredentialError, UnicodeDecodeError) as error:
        raise ConfigError(f"-p: not encrypted with the key in the -k file: {error}") from error
    return Delivery(key=key, ciphertext=text)


def certificate_package(authority: Authority, agent_id: AgentId, included: Mapping[str, bytes]) -> Delivery:
    """The agent's certificates and `included` as an encrypted zip, and what the verifier must know.

    Raises ConfigError.
    """
    notifier = authority.ensure(REVOCATION_NOTIFIER)
    issued = authority.ensure(agent_id)
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
