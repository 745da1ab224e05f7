"""An agent's answer turned into typed evidence, or into the findings that say why it cannot be."""

import base64
import binascii
import hashlib
from typing import Self

import msgspec

from keylime.errors import MalformedEvidence
from keylime.findings.finding import Finding
from keylime.hashes import HashAlgorithm
from keylime.ima.list_text import ListText
from keylime.messages.agent import QuoteReply, parse_quote_reply
from keylime.tpm.quote import Quote, parse_quote


class RawBootLog(msgspec.Struct, frozen=True):
    """A log of a boot as it was sent, by the firmware or the operating system; the hex SHA-256 of it."""

    content: bytes
    digest: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """A well-formed answer; nothing in it is believed yet."""

    quote: Quote
    bank: HashAlgorithm
    declared_encryption: str
    declared_signing: str
    public_key: str | None
    boottime: int
    ima_list: ListText | None
    ima_entry: int
    boot_log: RawBootLog | None
    os_log: RawBootLog | None = None


def quote_finding(event: str, message: str, *, error: str | None = None) -> Finding:
    """A finding about the quote itself, which is never recoverable."""
    context = {"message": message} if error is None else {"message": message, "error": error}
    explanation = message if error is None else f"{message}: {error}"
    # The component is spelled so on the wire; severity rules and dashboards match it.
    return Finding(f"qoute_validation.{event}", context, recoverable=False, explanation=explanation)


class AgentAnswer(msgspec.Struct, frozen=True):
    """An agent's answer: `ima_list` is beside the other fields, because it stays as it was sent.

    `quote` is that of `reply` if whoever received it has parsed it already.
    """

    reply: QuoteReply
    ima_list: ListText | None
    quote: Quote | None = None

    @classmethod
    def from_wire(cls, results: msgspec.Raw) -> Self:
        """The answer in the `results` of an envelope. Raises MalformedMessage."""
        reply, ima_list = parse_quote_reply(results)
        return cls(reply, None if ima_list is None else ListText.of_json(ima_list))

    @classmethod
    def of(cls, reply: QuoteReply) -> Self:
        """The same from fields that are decoded already."""
        text = reply.ima_measurement_list
        return cls(reply, None if text is None else ListText(text.encode()))


def parse_evidence(answer: AgentAnswer) -> Evidence | Finding:
    """The evidence in `answer`, or the finding that ends its appraisal."""
    reply = answer.reply
    try:
        bank = HashAlgorithm.from_label(reply.hash_alg)
    except ValueError as error:
        return quote_finding("invalid_hash_alg", str(error))
    try:
        quote = answer.quote or parse_quote(reply.quote)
    except MalformedEvidence as error:
        return quote_finding("quote_validation", "Quote data validation", error=str(error))
    try:
        boot_log = _decode_boot_log(reply.mb_measurement_list, "a boot log")
        os_log = _decode_boot_log(reply.os_measurement_list, "a log of the operating system")
    except MalformedEvidence as error:
        return Finding(
            "measured_boot.parser.log.base64decode",
            {"message": str(error)},
            recoverable=True,
            explanation=f"the agent sent {error}",
        )
    return Evidence(
        quote=quote,
        bank=bank,
        declared_encryption=reply.enc_alg,
        declared_signing=reply.sign_alg,
        public_key=reply.pubkey,
        boottime=reply.boottime,
        ima_list=answer.ima_list,
        ima_entry=reply.ima_measurement_list_entry,
        boot_log=boot_log,
        os_log=os_log,
    )


def _decode_boot_log(text: str | None, what: str) -> RawBootLog | None:
    if text is None:
        return None
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedEvidence(f"{what} that is not base64: {error}") from error
    if not content:  # the firmware handed none on, or nothing was measured: the file is there, and empty
        return None
    return RawBootLog(content, hashlib.sha256(content).hexdigest())
