"""Signatures of revocation messages: RSA-PSS, SHA-256, longest salt, over the bytes of the JSON text."""

import base64
import binascii

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from keylime.errors import CredentialError, MalformedMessage
from keylime.messages.envelope import parse_body
from keylime.messages.revocation import RevocationMessage, SignedRevocation
from keylime.pki.certificates import parse_certificate
from keylime.revocation.message import encode_message

_HASH = hashes.SHA256()
_SIGN_PADDING = padding.PSS(mgf=padding.MGF1(_HASH), salt_length=padding.PSS.MAX_LENGTH)
_VERIFY_PADDING = padding.PSS(mgf=padding.MGF1(_HASH), salt_length=padding.PSS.AUTO)


def sign_revocation(message: RevocationMessage, private_key_pem: str) -> SignedRevocation:
    """`message` signed with the agent's `revocation_key`. Raises CredentialError for a key that is not RSA.

    With an empty key (the agent was added without one) the signature is empty, and no agent will accept it.
    """
    text = encode_message(message)
    if not private_key_pem:
        return SignedRevocation(msg=text, signature="")
    key = _load_key(private_key_pem)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise CredentialError("the revocation key is not an RSA key")
    signature = key.sign(text.encode("utf-8"), _SIGN_PADDING, _HASH)
    return SignedRevocation(msg=text, signature=base64.b64encode(signature).decode("ascii"))


def _load_key(pem: str) -> object:
    # The primes are tested once, where the key comes in: here that would cost fifty times the signature, for
    # every machine of a fleet that fails together.
    try:
        return load_pem_private_key(pem.encode("utf-8"), None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CredentialError("the revocation key is not an unencrypted private key in PEM") from error


def verify_revocation(signed: SignedRevocation, certificate_pem: bytes) -> RevocationMessage:
    """The message in `signed`, parsed only after its signature was verified.

    Raises CredentialError: signature missing or wrong, certificate unusable, or text that is no such message.
    """
    key = parse_certificate(certificate_pem).public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise CredentialError("the revocation certificate does not hold an RSA key")
    try:
        signature = base64.b64decode(signed.signature.encode("ascii"), validate=True)
        key.verify(signature, signed.msg.encode("utf-8"), _VERIFY_PADDING, _HASH)
    except (InvalidSignature, binascii.Error, UnicodeEncodeError) as error:
        raise CredentialError("the signature of the revocation message is wrong") from error
    try:
        return parse_body(signed.msg.encode("utf-8"), RevocationMessage)
    except MalformedMessage as error:
        raise CredentialError(f"the signed text is not a revocation message: {error}") from error
