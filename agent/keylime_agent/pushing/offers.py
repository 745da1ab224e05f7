"""What an agent that attests by itself can show, and whether it can show what is asked for. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import rsa

from keylime.errors import KeylimeError, MalformedMessage
from keylime.hashes import HashAlgorithm
from keylime.messages.push_document import decode_binary, encode_binary
from keylime.messages.push_evidence import (
    COMPONENT_VERSION,
    FORMAT_OF,
    IMA_LOG,
    OS_LOG,
    UEFI_LOG,
    CertificationKey,
    LogCapabilities,
    LogOffer,
    Offer,
    QuoteCapabilities,
    QuoteOffer,
    QuoteParameters,
)
from keylime.tpm.keys import AttestationKey
from keylime.tpm.pcr import ALL_PCRS, PcrSelection

_MAX_CHALLENGE = 64  # bytes that any TPM takes as qualifying data


class CannotShow(KeylimeError):
    """A verifier asks for evidence that this machine does not have, or does not give; the text names it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to show: the AK, the bank of quotes, and of the logs how much; None: no such log."""

    ak: AttestationKey
    bank: HashAlgorithm
    key_identifier: str
    boot_log_version: str
    boot_events: int | None
    ima_entries: int | None
    has_os_log: bool


def offers(facts: Facts) -> list[Offer]:
    """All of it, in the words of the protocol."""
    found: list[Offer] = [_quote(facts)]
    if facts.boot_events is not None:
        capabilities = LogCapabilities(
            evidence_version=facts.boot_log_version,
            entry_count=facts.boot_events,
            formats=[FORMAT_OF[UEFI_LOG]],
        )
        found.append(LogOffer(evidence_type=UEFI_LOG, capabilities=capabilities))
    if facts.ima_entries is not None:
        capabilities = LogCapabilities(
            entry_count=facts.ima_entries,
            supports_partial_access=True,
            appendable=True,
            formats=[FORMAT_OF[IMA_LOG]],
        )
        found.append(LogOffer(evidence_type=IMA_LOG, capabilities=capabilities))
    if facts.has_os_log:
        capabilities = LogCapabilities(appendable=True, formats=[FORMAT_OF[OS_LOG]])
        found.append(LogOffer(evidence_type=OS_LOG, capabilities=capabilities))
    return found


def _quote(facts: Facts) -> QuoteOffer:
    ak = facts.ak
    key = CertificationKey(
        key_class="asymmetric",
        key_algorithm="rsa" if isinstance(ak.public_key, rsa.RSAPublicKey) else "ecc",
        key_size=ak.public_key.key_size,
        server_identifier=facts.key_identifier,
        local_identifier=ak.name.hex(),
        public=encode_binary(ak.tpm2b_public[2:]),  # TPMT_PUBLIC: without the size before it
        allowable_signature_schemes=[ak.scheme.label],
        allowable_hash_algorithms=[ak.scheme_hash.label],
    )
    return QuoteOffer(
        capabilities=QuoteCapabilities(
            component_version=COMPONENT_VERSION,
            signature_schemes=[ak.scheme.label],
            hash_algorithms=[facts.bank.label],
            available_subjects={facts.bank.label: sorted(ALL_PCRS)},
            certification_keys=[key],
        )
    )


def boot_time_text(seconds: int) -> str:
    """Seconds since the epoch as the protocol has times."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def quote_selection(asked: QuoteParameters, facts: Facts) -> tuple[PcrSelection, bytes]:
    """What is to be quoted, and with which challenge. Raises CannotShow, MalformedMessage.

    Only the bank that is named together with the key's hash is quoted.
    """
    ak = facts.ak
    if (asked.signature_scheme, asked.hash_algorithm) != (ak.scheme.label, ak.scheme_hash.label):
        raise CannotShow(
            f"a quote with {asked.signature_scheme} and {asked.hash_algorithm} is asked for, but the "
            f"attestation key signs with {ak.scheme.label} and {ak.scheme_hash.label}"
        )
    name = asked.certification_key.local_identifier
    if name is not None and name.lower().removeprefix("0x") != ak.name.hex():
        raise CannotShow("a quote with another key than the attestation key is asked for")
    indices = asked.selected_subjects.get(facts.bank.label)
    if not indices:
        raise CannotShow(f"no PCRs of the bank {facts.bank.label} are asked for")
    challenge = decode_binary(asked.challenge)
    if not 0 < len(challenge) <= _MAX_CHALLENGE:
        raise MalformedMessage(f"a challenge has 1 to {_MAX_CHALLENGE} bytes, not {len(challenge)}")
    try:
        return PcrSelection(facts.bank, frozenset(indices)), challenge
    except ValueError as error:
        raise MalformedMessage(str(error)) from error
