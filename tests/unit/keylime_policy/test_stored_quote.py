"""Quotes and keys from files, in every form that they are kept in."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.errors import ConfigError
from keylime.tpm.keys import SignatureScheme
from keylime_policy.offline import Approval, Conclusion, StoredEvidence, judge
from keylime_policy.quote_files import load_quote
from tests.captures import AK_LABELS, capture

STAGE = capture("direct-efistub").stage("s1-clean")
PREFIX = STAGE.path / "quote_ecdsa_sha256"
AK = STAGE.path.parent / "ak_ecdsa.tpm2b_public"


def test_the_wire_form_and_the_three_files_are_the_same_quote(tmp_path: Path) -> None:
    wire = tmp_path / "quote.txt"
    wire.write_text(STAGE.quote("ecdsa", "sha256").text + "\n")
    assert load_quote(str(wire), str(AK), "n") == load_quote(str(PREFIX), str(AK), "n")
    assert load_quote(f"{PREFIX}.", str(AK), "n") == load_quote(str(PREFIX), str(AK), "n")


def test_a_public_area_may_be_in_base64(tmp_path: Path) -> None:
    encoded = tmp_path / "ak"
    encoded.write_bytes(base64.b64encode(AK.read_bytes()) + b"\n")
    assert load_quote(str(PREFIX), str(encoded), "n") == load_quote(str(PREFIX), str(AK), "n")


@pytest.mark.parametrize("label", AK_LABELS)
def test_a_key_in_pem_signs_as_the_quote_does_and_has_no_attributes(label: str) -> None:
    prefix, pem = STAGE.path / f"quote_{label}_sha256", STAGE.path.parent / f"ak_{label}.pem"
    quote = load_quote(str(prefix), str(pem), STAGE.nonce)
    assert quote.key.scheme is SignatureScheme[label.upper()]
    judgement = judge(StoredEvidence(quote=quote), Approval())
    assert judgement.outcome is Conclusion.ACCEPTED
    assert any("attributes" in text for text in judgement.not_checked)


def test_a_text_that_is_no_quote_is_for_the_appraisal_to_reject(tmp_path: Path) -> None:
    wire = tmp_path / "quote.txt"
    wire.write_text("rAAAA:BBBB:CCCC")
    for ak in (AK, AK.with_suffix(".pem")):
        quote = load_quote(str(wire), str(ak), "n")
        assert quote.content is None
        assert judge(StoredEvidence(quote=quote), Approval()).outcome is Conclusion.REJECTED


@pytest.mark.parametrize(
    ("quote", "ak", "text"),
    [
        (PREFIX, PREFIX.with_suffix(".msg"), "--ak .*TPM2B_PUBLIC"),
        (PREFIX, STAGE.path.parent / "ek_rsa.tpm2b_public", "--ak .*AK lacks the attribute"),
        (PREFIX.with_suffix(".msg"), AK, "--quote .*neither the text of a quote"),
        (STAGE.path / "nothing", AK, "--quote .*No such file"),
        (PREFIX, STAGE.path / "nothing", "--ak .*No such file"),
    ],
)
def test_unusable_files_are_named_with_their_option(quote: Path, ak: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_quote(str(quote), str(ak), "n")


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    pem = tmp_path / "ak.pem"
    pem.write_bytes(
        Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(ConfigError, match="expected an RSA or elliptic-curve key"):
        load_quote(str(PREFIX), str(pem), "n")
    pem.write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(ConfigError, match="no public key in PEM"):
        load_quote(str(PREFIX), str(pem), "n")
