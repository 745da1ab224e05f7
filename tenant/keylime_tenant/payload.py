"""What an agent gets once it is trusted. Pure but for fresh keys: `payload_sources` reads files."""

import base64
from dataclasses import dataclass, field

from keylime.errors import ConfigError, CredentialError
from keylime.payload.encryption import decrypt_payload, encrypt_payload
from keylime.payload.keys import BootstrapKey, parse_key_file, split_key
from keylime_tenant.arguments import Arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadDelivery:
    """A payload ready to go: key shares, ciphertext, and what the verifier learns about it."""

    key: BootstrapKey | None = field(default=None, repr=False)  # None: the agent gets nothing
    ciphertext: str | None = field(default=None, repr=False)  # base64
    metadata: str = "{}"  # JSON text
    revocation_key: str = field(default="", repr=False)  # PEM

    @property
    def v_share(self) -> str | None:
        """V in base64, as the verifier keeps it."""
        return None if self.key is None else base64.b64encode(self.key.v).decode("ascii")


NOTHING = PayloadDelivery()


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


def encrypted(content: bytes, *, metadata: str = "{}", revocation_key: str = "") -> PayloadDelivery:
    """`content` under a fresh key."""
    key = split_key()
    return PayloadDelivery(
        key=key, ciphertext=encrypt_payload(key.k, content), metadata=metadata, revocation_key=revocation_key
    )


def premade(key_lines: bytes, ciphertext: bytes | None) -> PayloadDelivery:
    """A payload that was encrypted before: the text of its key file and its base64. Raises ConfigError."""
    try:
        key = parse_key_file(key_lines.decode("ascii"))
    except (CredentialError, UnicodeDecodeError) as error:
        raise ConfigError(f"-k: {error}") from error
    if ciphertext is None:
        return PayloadDelivery(key=key)
    try:
        text = b"".join(ciphertext.split()).decode("ascii")
        decrypt_payload(key.k, text)
    except (CredentialError, UnicodeDecodeError) as error:
        raise ConfigError(f"-p: not encrypted with the key in the -k file: {error}") from error
    return PayloadDelivery(key=key, ciphertext=text)
