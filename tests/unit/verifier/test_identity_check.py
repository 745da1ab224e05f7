"""Whose quote is it? The answer, and that finding it costs the same whether or not there is such an agent."""

import base64
import functools
import sys
from collections import Counter
from types import FrameType

import pytest

from keylime.errors import KeylimeError
from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import PcrValues
from keylime_verifier.verification.identity_check import judge_identity
from tests.fakes.software_ak import SoftwareAk
from tests.unit.verifier.test_evidence_check import stage


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_an_identity_is_proven_by_signature_nonce_and_bank() -> None:
    quote = stage().quote("ecdsa", "sha256")
    key = b64(quote.ak_public)
    other = b64(stage().quote("rsassa", "sha256").ak_public)
    assert judge_identity(quote.text, quote.nonce, "sha256", key) is None
    assert judge_identity(quote.text, quote.nonce + "x", "sha256", key) is not None
    assert judge_identity(quote.text, quote.nonce, "sha1", key) is not None
    assert judge_identity(quote.text, quote.nonce, "nothing", key) is not None
    assert judge_identity("r", quote.nonce, "sha256", key) is not None
    assert judge_identity(quote.text, quote.nonce, "sha256", other) is not None


@pytest.mark.parametrize("ak", ["rsassa", "rsapss", "ecdsa"])
@pytest.mark.parametrize("nonce", ["right", "wrong"])
def test_n18_an_unknown_agent_is_answered_like_a_known_one_with_another_key(ak: str, nonce: str) -> None:
    quote = stage().quote(ak, "sha256")
    stranger = b64(SoftwareAk.generate("ecc256", SignatureScheme.ECDSA).tpm2b_public)
    sent = quote.nonce if nonce == "right" else nonce
    unknown = judge_identity(quote.text, sent, "sha256", None)
    assert unknown == judge_identity(quote.text, sent, "sha256", stranger)
    assert unknown is not None


KINDS = [
    ("rsa2048", SignatureScheme.RSASSA),
    ("rsa2048", SignatureScheme.RSAPSS),
    ("rsa3072", SignatureScheme.RSASSA),
    ("ecc256", SignatureScheme.ECDSA),
    ("ecc384", SignatureScheme.ECDSA),
    ("ecc521", SignatureScheme.ECDSA),
]


@functools.cache
def machine(kind: str, scheme: SignatureScheme, number: int) -> SoftwareAk:
    return SoftwareAk.generate(kind, scheme)


@functools.cache
def quote_by(kind: str, scheme: SignatureScheme) -> str:
    values = PcrValues(HashAlgorithm.SHA256, {16: bytes(32)})
    return machine(kind, scheme, 1).quote(b"nonce", values, clock=1, reset_count=1, restart_count=0)


def work_of(quote: str, ak_tpm: str | None) -> Counter[str]:
    """The signatures that were verified and with what kind of key, and every function of ours about them."""
    counted: Counter[str] = Counter()

    def look(frame: FrameType, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__name__", "") == "verify":
            key = getattr(function, "__self__")  # noqa: B009 - of a function of any kind
            counted[f"{type(key).__name__}({key.key_size}).verify"] += 1
        elif event == "call" and frame.f_globals["__name__"] in (
            "keylime.tpm.quote",
            "keylime.tpm.signature",
        ):
            counted[frame.f_code.co_qualname] += 1
        elif event == "call" and frame.f_code.co_name == "decode_attestation_key":
            counted["decode_attestation_key"] += 1

    sys.setprofile(look)
    try:
        assert judge_identity(quote, "nonce", "sha256", ak_tpm) is not None
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize("known", KINDS)
@pytest.mark.parametrize("signer", KINDS)
def test_n18_an_unknown_agent_costs_the_work_of_a_known_one(
    signer: tuple[str, SignatureScheme], known: tuple[str, SignatureScheme]
) -> None:
    """Whatever kind of key the agent has, and whatever kind of signature a stranger brings along."""
    quote = quote_by(*signer)
    unknown = work_of(quote, None)
    assert work_of(quote, b64(machine(*known, 2).tpm2b_public)) == unknown
    (verified,) = (name for name in unknown if name.endswith(".verify"))
    assert signer[0][3:] in verified
    assert (unknown[verified], unknown["decode_attestation_key"]) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_of_any_kind_proves_its_identity(kind: tuple[str, SignatureScheme]) -> None:
    ak_tpm = b64(machine(*kind, 1).tpm2b_public)
    assert judge_identity(quote_by(*kind), "nonce", "sha256", ak_tpm) is None


def test_a_stored_key_of_no_use_is_no_answer_about_a_quote() -> None:
    with pytest.raises(KeylimeError):
        judge_identity(quote_by(*KINDS[0]), "nonce", "sha256", "****")
