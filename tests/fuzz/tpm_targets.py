"""Fuzz targets for what comes from TPMs: quotes, keys, credentials."""

import base64
from collections.abc import Iterator

from keylime.errors import MalformedEvidence, UnsuitableKey
from keylime.tpm.credential import parse_credential_blob
from keylime.tpm.ek_certificates import choose_certificates, der_items
from keylime.tpm.keys import parse_attestation_key, parse_device_key, parse_endorsement_key
from keylime.tpm.pcr import encode_pcr_blob, parse_pcr_blob
from keylime.tpm.quote import QuoteRejected, encode_quote, parse_quote, verify_quote
from keylime.tpm.signature import SignatureInvalid, parse_signature, verify_signature
from keylime.tpm.structures import parse_attest
from tests.captures import AK_LABELS, captured_quotes, captures
from tests.fuzz.target import Target, Targets, text_of, together

_AK = {label: parse_attestation_key(captures()[0].ak_public(label)) for label in AK_LABELS}
_NONCE = captures()[0].stages[0].nonce.encode()


def _quote(data: bytes) -> None:
    text = text_of(data)
    quote = parse_quote(text)
    signature, blob = (base64.b64decode(part) for part in text.split(":")[1:])
    assert encode_quote(quote.attest_bytes, signature, blob) == text
    assert encode_pcr_blob(quote.pcrs) == blob
    verified = verify_quote(quote, _AK["ecdsa"], _NONCE, quote.pcrs.selection)
    genuine = {captured.attest for captured in captured_quotes()}
    assert quote.attest_bytes in genuine, "only the TPM can have signed it"
    assert verified.pcrs == quote.pcrs


def _attest(data: bytes) -> None:
    parse_attest(data)


def _signature(data: bytes) -> None:
    signature = parse_signature(data)
    for key in _AK.values():
        try:
            verify_signature(key, signature, b"nobody signed this")
        except SignatureInvalid:
            continue
        raise AssertionError("a signature of a message that was never signed verifies")


def _pcr_blob(data: bytes) -> None:
    assert encode_pcr_blob(parse_pcr_blob(data)) == data


def _attestation_key(data: bytes) -> None:
    key = parse_attestation_key(data)
    assert key.tpm2b_public == data
    assert key.pem.startswith("-----BEGIN PUBLIC KEY-----")


def _endorsement_key(data: bytes) -> None:
    assert parse_endorsement_key(data).tpm2b_public == data


def _device_key(data: bytes) -> None:
    parse_device_key(data)


def _credential(data: bytes) -> None:
    id_object, secret = parse_credential_blob(data)
    sized = b"".join(len(part).to_bytes(2, "big") + part for part in (id_object, secret))
    assert data[8:] == sized


def _stored_certificates(data: bytes) -> None:
    assert b"".join(der_items(data)) == data[: sum(map(len, der_items(data)))]
    choose_certificates(captures()[0].ek_public("rsa"), [data], data)


def _ak_seeds() -> Iterator[bytes]:
    return (one.ak_public(label) for one in captures() for label in AK_LABELS)


def _ek_seeds() -> Iterator[bytes]:
    return (one.ek_public(kind) for one in captures() for kind in ("rsa", "ecc"))


TARGETS: Targets = {
    "quote": Target(
        _quote, (MalformedEvidence, QuoteRejected), lambda: (q.text.encode() for q in captured_quotes())
    ),
    "attest": Target(_attest, (MalformedEvidence,), lambda: (quote.attest for quote in captured_quotes())),
    "signature": Target(
        _signature, (MalformedEvidence,), lambda: (quote.signature for quote in captured_quotes())
    ),
    "pcr-blob": Target(
        _pcr_blob, (MalformedEvidence,), lambda: (quote.pcr_blob for quote in captured_quotes())
    ),
    "public-area": together(
        Target(_attestation_key, (MalformedEvidence, UnsuitableKey), _ak_seeds),
        Target(_endorsement_key, (MalformedEvidence, UnsuitableKey), _ek_seeds),
        Target(_device_key, (MalformedEvidence, UnsuitableKey), _ak_seeds),
    ),
    "credential": Target(
        _credential,
        (MalformedEvidence,),
        lambda: (
            (one.path / "credential.blob").read_bytes()
            for one in captures()
            if (one.path / "credential.blob").exists()
        ),
    ),
    "stored-certificates": Target(
        _stored_certificates, (), lambda: (one.ek_certificate for one in captures())
    ),
}
