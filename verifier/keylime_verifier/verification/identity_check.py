"""Whether a quote is one of a certain agent: the same work and answer when there is no such agent."""

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import CURVES, RSA_SIZES, AttestationKey, PublicKey
from keylime.tpm.pcr import PcrSelection
from keylime.tpm.quote import QuoteRejected, parse_quote, verify_quote
from keylime.tpm.signature import EcdsaValue, RsaValue, Signature, SignatureValue
from keylime_verifier.policies.demands import decode_attestation_key

_NOT_THE_AGENTS = "the quote is not one of this agent for this nonce"


def judge_identity(text: str, nonce: str, hash_alg: str, ak_tpm: str | None) -> str | None:
    """Why the quote `text` does not prove the identity behind `ak_tpm`, or None when it does.

    Signature, nonce and PCR digest are checked, not what the PCRs hold. Without a key the answer is that of a
    wrong signature, after the same work: who asks learns nothing about which agents there are (N18). Raises
    MalformedMessage, MalformedEvidence or UnsuitableKey for a key of no use.
    """
    known = decode_attestation_key(ak_tpm or _DECOY_AK)
    try:
        bank = HashAlgorithm.from_label(hash_alg)
        quote = parse_quote(text)
    except (ValueError, MalformedEvidence) as error:
        return str(error)
    decoy = _decoy(quote.signature)
    # A key of another kind than the signature's would be refused before any work: the decoy does it instead.
    is_candidate = ak_tpm is not None and _makes(known, quote.signature, decoy)
    selection = PcrSelection(bank, frozenset(quote.pcrs.values))
    try:
        verify_quote(quote, known if is_candidate else decoy, nonce.encode(), selection)
    except QuoteRejected:
        # Not the reason: which check failed would tell whether there is such an agent.
        return _NOT_THE_AGENTS
    return None if is_candidate else _NOT_THE_AGENTS


def _decoy(signature: Signature) -> AttestationKey:
    """A key that nobody's TPM has, of the kind that made a signature of this size."""
    public_key = _decoy_key(signature.value)
    return AttestationKey(public_key, signature.scheme, signature.hash_algorithm, name=b"", tpm2b_public=b"")


def _decoy_key(value: SignatureValue) -> PublicKey:
    match value:
        case RsaValue(number):
            return _RSA_DECOYS.get(len(number) * 8, _RSA_DECOYS[2048])
        case EcdsaValue(r, s):
            bits = max(int.from_bytes(r, "big"), int.from_bytes(s, "big")).bit_length()
            # Of a larger curve's signatures, fewer than one in 2^128 have numbers as small as this.
            return next((key for size, key in _ECC_DECOYS.items() if bits <= size), _ECC_DECOYS[521])


def _makes(key: AttestationKey, signature: Signature, decoy: AttestationKey) -> bool:
    """Whether `key` makes signatures of this kind, of which `decoy` is one key."""
    kind = key.scheme, key.scheme_hash, key.encryption_label
    return kind == (signature.scheme, signature.hash_algorithm, decoy.encryption_label)


_RSA_DECOYS = {bits: rsa.RSAPublicNumbers(65537, (1 << bits - 1) + 1).public_key() for bits in RSA_SIZES}
_ECC_DECOYS = {curve.key_size: ec.derive_private_key(3, curve).public_key() for curve in CURVES.values()}
# TPM2B_PUBLIC of the smallest of these, in base64.
_DECOY_AK = (
    "AFgAIwALAAUAcgAAABAAGAALAAMAEAAgXsvk0aYzCkTI9++VHUvxZebGtyHvramF+0FmG8bn/WwA"
    "IIc0ZAxJmP9+N0sGzhpkouzYKrA2OE+4PZp5sSeifVAy"
)
