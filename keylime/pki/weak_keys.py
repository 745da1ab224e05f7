"""Public keys that are formally fine and practically weak. Pure."""

from cryptography.hazmat.primitives.asymmetric import rsa

from keylime.pki.certificates import PublicKey

MIN_RSA_BITS = 2048
MIN_CURVE_BITS = 256

# Keys of CVE-2017-15361 are, modulo each of these primes, a power of 65537 (Nemec et al., 2017).
_ROCA_GENERATOR = 65537
_ROCA_PRIMES = (3, 5, 7, 11, 13, 17, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)


def _powers(prime: int) -> frozenset[int]:
    return frozenset(pow(_ROCA_GENERATOR, exponent, prime) for exponent in range(prime - 1))


_ROCA_RESIDUES = {prime: _powers(prime) for prime in _ROCA_PRIMES}


def is_roca_modulus(modulus: int) -> bool:
    """Whether an RSA modulus has the mark of the factorable keys of CVE-2017-15361 (by chance: 1 in 2^27)."""
    return all(modulus % prime in residues for prime, residues in _ROCA_RESIDUES.items())


def key_weaknesses(key: PublicKey) -> tuple[str, ...]:
    """What is weak about `key`, in words; empty for a sound one."""
    if not isinstance(key, rsa.RSAPublicKey):
        if key.curve.key_size < MIN_CURVE_BITS:
            return (f"an elliptic-curve key of {key.curve.key_size} bits",)
        return ()
    found = []
    if key.key_size < MIN_RSA_BITS:
        found.append(f"an RSA key of {key.key_size} bits")
    if is_roca_modulus(key.public_numbers().n):
        found.append("an RSA key that can be factored (CVE-2017-15361)")
    return tuple(found)
