"""Whether a private key does what it is for."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from keylime.pki.certificates import PrivateKey

_TEXT = b"a trial"


def signs_for(private: PrivateKey, public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bool:
    """Whether `public` verifies what `private` signs: damaged or exchanged numbers do not go together."""
    try:
        if isinstance(private, rsa.RSAPrivateKey) and isinstance(public, rsa.RSAPublicKey):
            signature = private.sign(_TEXT, padding.PKCS1v15(), SHA256())
            public.verify(signature, _TEXT, padding.PKCS1v15(), SHA256())
        elif isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(
            public, ec.EllipticCurvePublicKey
        ):
            public.verify(private.sign(_TEXT, ec.ECDSA(SHA256())), _TEXT, ec.ECDSA(SHA256()))
        else:
            return False
    except (InvalidSignature, ValueError):
        return False
    return True
