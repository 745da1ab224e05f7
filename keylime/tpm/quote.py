"""Quotes: from the text on the wire to values that the AK's TPM vouches for.

Pure. `verify_quote` answers one question: did this key's TPM attest exactly these PCRs for this nonce? What
the values should be, and whether clock and algorithms are acceptable, is the appraisal's business.
"""

import base64
import binascii
import hmac

import msgspec

from keylime.errors import KeylimeError, MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import AttestationKey
from keylime.tpm.pcr import PcrSelection, PcrValues, parse_pcr_blob
from keylime.tpm.signature import Signature, SignatureInvalid, parse_signature, verify_signature
from keylime.tpm.structures import Attest, ClockInfo, QuoteInfo, parse_attest

_PREFIX = "r"  # the other letters of the format's history are not in use
MAX_TEXT = 8192
"""Characters of a quote: twice what the largest parts (RSA-4096, 24 SHA-512 PCRs) take."""


class QuoteRejected(KeylimeError):
    """A quote that does not attest what was asked; the text says which check failed. Becomes a finding."""


class Quote(msgspec.Struct, frozen=True):
    """A quote as an agent sent it: well-formed, but nothing in it is proven."""

    attest: Attest
    attest_bytes: bytes  # what the signature is over
    signature: Signature
    pcrs: PcrValues


class VerifiedQuote(msgspec.Struct, frozen=True):
    """What the TPM of an AK vouched for. Only `verify_quote` makes it."""

    pcrs: PcrValues
    clock: ClockInfo
    firmware_version: int
    signature_hash: HashAlgorithm


def parse_quote(text: str) -> Quote:
    """The wire form `r<attest>:<signature>:<pcrs>`, each part in base64. Raises MalformedEvidence."""
    if len(text) > MAX_TEXT:
        raise MalformedEvidence(f"quote has {len(text)} characters, at most {MAX_TEXT} expected")
    if not text.startswith(_PREFIX):
        raise MalformedEvidence(f"quote starts with {text[:1]!r}, expected {_PREFIX!r}")
    parts = text[len(_PREFIX) :].split(":")
    if len(parts) != 3:
        raise MalformedEvidence(f"quote has {len(parts)} parts, expected 3")
    attest, signature, pcr_blob = map(_decode_base64, ("attestation", "signature", "PCR"), parts)
    return Quote(
        attest=parse_attest(attest),
        attest_bytes=attest,
        signature=parse_signature(signature),
        pcrs=parse_pcr_blob(pcr_blob),
    )


def encode_quote(attest: bytes, signature: bytes, pcr_blob: bytes) -> str:
    """The wire form of a quote: TPMS_ATTEST, TPMT_SIGNATURE and PCR blob as bytes."""
    return _PREFIX + ":".join(base64.b64encode(part).decode() for part in (attest, signature, pcr_blob))


def verify_quote(quote: Quote, key: AttestationKey, nonce: bytes, selection: PcrSelection) -> VerifiedQuote:
    """What the TPM of `key` attested: exactly the PCRs of `selection`, for exactly `nonce`.

    Raises QuoteRejected. The signature is checked first, so that every later reason is about data that the
    TPM signed. The selection is compared three ways (signed, in the blob, asked for): values
    without the signed selection could be those of other registers.
    """
    try:
        verify_signature(key, quote.signature, quote.attest_bytes)
    except SignatureInvalid as error:
        raise QuoteRejected(str(error)) from error
    attested = quote.attest.attested
    if not isinstance(attested, QuoteInfo):
        raise QuoteRejected(f"the TPM signed a {quote.attest.type.name.lower()} structure, not a quote")
    if not hmac.compare_digest(quote.attest.extra_data, nonce):
        raise QuoteRejected("the nonce in the quote is not the one that was sent")
    _check_selection(attested, quote.pcrs, selection)
    if attested.pcr_digest != quote.pcrs.digest(quote.signature.hash_algorithm):
        raise QuoteRejected("the PCR values do not hash to the digest that the TPM signed")
    return VerifiedQuote(
        pcrs=quote.pcrs,
        clock=quote.attest.clock,
        firmware_version=quote.attest.firmware_version,
        signature_hash=quote.signature.hash_algorithm,
    )


def _check_selection(attested: QuoteInfo, pcrs: PcrValues, asked: PcrSelection) -> None:
    if len(attested.selections) != 1:
        raise QuoteRejected(f"the quote selects from {len(attested.selections)} PCR banks, expected 1")
    (signed,) = attested.selections
    if not asked.indices:
        raise QuoteRejected("no PCR was asked for")
    if signed != asked:
        raise QuoteRejected(f"the TPM quoted {signed}, asked for was {asked}")
    if pcrs.selection != signed:
        raise QuoteRejected(f"the values are labelled {pcrs.selection}, the TPM quoted {signed}")


def _decode_base64(name: str, text: str) -> bytes:
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):  # ValueError: characters outside ASCII
        raise MalformedEvidence(f"{name} part of the quote is not base64") from None
    # The decoder lets stray bits before the padding pass; one value must have one text.
    if binascii.b2a_base64(data, newline=False).decode() != text:
        raise MalformedEvidence(f"{name} part of the quote is not canonical base64")
    return data
