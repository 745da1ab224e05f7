"""What the keys of a device's identity look like: IDevID and IAK, made anew from the endorsement seed.

Source: TCG "TPM 2.0 Keys for Device Identity and Attestation", version 1.00, section 7.3 (recoverable keys):
whoever knows the template gets the same key at each TPM2_CreatePrimary, so that the maker's certificate fits
although no key is stored. Talks to no TPM: device.py does.
"""

import enum
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tpm2_pytss.constants import TPM2_ALG, TPMA_OBJECT  # type: ignore[import-untyped]  # ships no types
from tpm2_pytss.types import (  # type: ignore[import-untyped]  # ships no types
    TPM2B_DIGEST,
    TPM2B_PUBLIC,
    TPM2B_PUBLIC_KEY_RSA,
    TPMS_ECC_POINT,
    TPMT_PUBLIC,
    TPMU_PUBLIC_ID,
)

from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import encryption_label
from keylime.tpm.templates import key_type, signing_parameters

# Where makers leave the certificates of these keys (TCG Registry of Reserved TPM 2.0 Handles and Localities).
DEVICE_CERTIFICATE_INDICES = range(0x01C90000, 0x01CA0000)


class DeviceKey(enum.Enum):
    """The two keys: one that names the device, and one that only signs what its TPM made."""

    IDEVID = "IDevID"
    IAK = "IAK"


@dataclass(frozen=True, slots=True)
class DeviceKeyKind:
    """Type and size of a key ("rsa2048"), and the hash of its name, policy and signatures."""

    label: str
    name_alg: HashAlgorithm

    def __str__(self) -> str:
        name = next((name for name, kind in DEVICE_KEY_KINDS.items() if kind == self), None)
        return f"template {name}" if name is not None else f"{self.label} with {self.name_alg.label}"


# Section 7.3.4. H-5 (SM2 with SM3) is not among them: no registrar here can check its signatures.
DEVICE_KEY_KINDS = {
    "H-1": DeviceKeyKind("rsa2048", HashAlgorithm.SHA256),
    "H-2": DeviceKeyKind("ecc256", HashAlgorithm.SHA256),
    "H-3": DeviceKeyKind("ecc384", HashAlgorithm.SHA384),
    "H-4": DeviceKeyKind("ecc521", HashAlgorithm.SHA512),
}
_SIZES = {
    "rsa": {HashAlgorithm.SHA256: 2048, HashAlgorithm.SHA384: 3072, HashAlgorithm.SHA512: 4096},
    "ecc": {HashAlgorithm.SHA256: 256, HashAlgorithm.SHA384: 384, HashAlgorithm.SHA512: 521},
}
_KINDS = tuple(
    DeviceKeyKind(f"{family}{size}", name_alg)
    for family, sizes in _SIZES.items()
    for name_alg, size in sizes.items()
)

# The digests of section 7.3.6: what an owner may do with the keys beside signing.
_POLICIES = {
    (DeviceKey.IDEVID, HashAlgorithm.SHA256): (
        "ad6b3a2284fd698a0710bf5cc1b9bdf15e2532e3f601fa4b93a6a8fa8de579ea"
    ),
    (DeviceKey.IDEVID, HashAlgorithm.SHA384): (
        "4db1aa836d0b5615df6ee53a40ef70c61c217f4303d44695925972bc927006cfa5cbdf6dc18c4dbe329b2f1542c3dd33"
    ),
    (DeviceKey.IDEVID, HashAlgorithm.SHA512): (
        "7dd7500fd6c1b94f97a6af910da147301ef28f662fee06f225a4ccadda3b4e6b"
        "38e66b2f3ad5dee1a0503cd2daedb1e68cfe4f84b03a8cd22bb6a976f071a72f"
    ),
    (DeviceKey.IAK, HashAlgorithm.SHA256): (
        "5437182326e414fca797d5f174615a1641f61255797c3a2b22c21d120b2d1e07"
    ),
    (DeviceKey.IAK, HashAlgorithm.SHA384): (
        "129d94ebf84556652c6eef43bbb757512ac87e52be7b349ca6ce4d826f749fcf672f51716c5cbb605f313bf345aab312"
    ),
    (DeviceKey.IAK, HashAlgorithm.SHA512): (
        "8060d1fb31716a29e48a6e5fece088bcfc1b278fc162255e81c3eca3544cd44a"
        "f94410c3715d561cccd9e39a6cb2646d43535bb54ea88710deb5f7836bd9b586"
    ),
}
_ATTRIBUTES = (
    TPMA_OBJECT.SIGN_ENCRYPT
    | TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.ADMINWITHPOLICY
)


def kind_of(family: str, name_alg: HashAlgorithm) -> DeviceKeyKind:
    """The kind for a type of key ("rsa", "ecc") and a hash. Raises ValueError."""
    size = _SIZES.get(family, {}).get(name_alg)
    if size is None:
        raise ValueError("expected rsa or ecc with sha256, sha384 or sha512")
    return DeviceKeyKind(f"{family}{size}", name_alg)


def kind_for(public_key: object) -> DeviceKeyKind | None:
    """The kind of which a certified key is; None when there is none for its type and size."""
    if not isinstance(public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return None
    # A curve of another family has the same size as one of NIST's; its key will not be equal, which is told.
    label = encryption_label(public_key)
    return next((kind for kind in _KINDS if kind.label == label), None)


def device_key_template(key: DeviceKey, kind: DeviceKeyKind) -> Any:
    """The TPM2B_PUBLIC to make `key` from."""
    is_rsa = kind.label.startswith("rsa")
    attributes, scheme = _ATTRIBUTES, TPM2_ALG.NULL if is_rsa else TPM2_ALG.ECDSA
    if key is DeviceKey.IAK:
        attributes |= TPMA_OBJECT.RESTRICTED
        scheme = TPM2_ALG.RSAPSS if is_rsa else TPM2_ALG.ECDSA
    word = key.value.upper().encode()
    unique = (
        TPMU_PUBLIC_ID(rsa=TPM2B_PUBLIC_KEY_RSA(word))
        if is_rsa
        else TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=word, y=word))
    )
    area = TPMT_PUBLIC(
        type=key_type(kind.label),
        nameAlg=int(kind.name_alg),
        objectAttributes=attributes,
        authPolicy=TPM2B_DIGEST(bytes.fromhex(_POLICIES[key, kind.name_alg])),
        parameters=signing_parameters(kind.label, scheme, kind.name_alg),
        unique=unique,
    )
    return TPM2B_PUBLIC(publicArea=area)
