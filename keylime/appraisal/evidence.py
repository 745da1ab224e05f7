"""An agent's answer turned into typed evidence, or into the findings that say why it cannot be."""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from keylime.appraisal.findings import Finding
from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.messages.agent import QuoteReply
from keylime.tpm.quote import Quote, parse_quote


@dataclass(frozen=True, slots=True)
class RawBootLog:
    """A boot log as it was sent, and the hex SHA-256 of it."""

    content: bytes
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A well-formed answer; nothing in it is believed yet."""

    quote: Quote
    bank: HashAlgorithm
    declared_encryption: str
    declared_signing: str
    public_key: str | None
    boottime: int
    ima_list: bytes | None
    ima_entry: int
    boot_log: RawBootLog | None


def quote_finding(event: str, message: str, *, error: str | None = None) -> Finding:
    """A finding about the quote itself, which is never recoverable."""
    context = {"message": message} if error is None else {"message": message, "error": error}
    explanation = message if error is None else f"{message}: {error}"
    # The component is spelled so on the wire; severity rules and dashboards match it.
    return Finding(f"qoute_validation.{event}", context, recoverable=False, explanation=explanation)


def parse_evidence(reply: QuoteReply) -> Evidence | Finding:
    """The evidence in `reply`, or the finding that ends its appraisal."""
    try:
        bank = HashAlgorithm.from_label(reply.hash_alg)
    except ValueError as error:
        return quote_finding("invalid_hash_alg", str(error))
    try:
        quote = parse_quote(reply.quote)
    except MalformedEvidence as error:
        return quote_finding("quote_validation", "Quote data validation", error=str(error))
    try:
        boot_log = _decode_boot_log(reply.mb_measurement_list)
    except (binascii.Error, ValueError) as error:
        return Finding(
            "measured_boot.parser.log.base64decode",
            {"message": f"the boot log is not base64: {error}"},
            recoverable=True,
            explanation=f"the agent sent a boot log that is not base64 ({error})",
        )
    return Evidence(
        quote=quote,
        bank=bank,
        declared_encryption=reply.enc_alg,
        declared_signing=reply.sign_alg,
        public_key=reply.pubkey,
        boottime=reply.boottime,
        ima_list=None if reply.ima_measurement_list is None else reply.ima_measurement_list.encode(),
        ima_entry=reply.ima_measurement_list_entry,
        boot_log=boot_log,
    )


def _decode_boot_log(text: str | None) -> RawBootLog | None:
    if text is None:
        return None
    content = base64.b64decode(text, validate=True)
    return RawBootLog(content, hashlib.sha256(content).hexdigest())
